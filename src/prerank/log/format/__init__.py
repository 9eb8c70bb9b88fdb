"""The files of a log: names, columns, vocabularies, items; encoding and checked decoding."""
