"""The revision of every stage: raise a number when a change of code changes that stage's result.

A revision enters the stage's id, so raising it runs the stage again, and all that builds on it. `tests/test_fingerprints.py`
fails when a stage's code changed and its revision did not. Kept in one file, apart from the code, because the plan must
know the numbers without importing torch.
"""

REVISIONS = {
    "data": 1,
    "classifier.cam": 1,
    "classifier.puzzle": 1,
    "classifier.rsa_cfc": 1,
    "cams": 1,
    "threshold": 1,
    "affinity-labels": 1,
    "affinity.affinity": 1,
    "boundary.boundary": 1,
    "walk": 1,
    "crf": 1,
    "pseudo": 1,
    "segmenter.segment": 2,
    "predict": 1,
    "evaluate": 1,
}
