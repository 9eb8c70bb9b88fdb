"""The HAP study: which of the claims hold, on which data, beside which controls.

``grid`` says what is trained, ``execute`` trains and scores one line, ``study`` works through the
list; ``facts`` turns stored scores into numbers, ``answers`` compares them, ``page`` writes.
"""
