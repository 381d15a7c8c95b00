"""The revision of every stage: raise a number when a change of code changes that stage's result.

A revision enters the stage's id, so raising it runs the stage again, and all that builds on it. `tests/test_fingerprints.py`
fails when a stage's code changed and its revision did not. Kept in one file, apart from the code, because the plan must
know the numbers without importing torch.
"""

REVISIONS = {
    "data": 2,
    "classifier.cam": 2,
    "classifier.puzzle": 2,
    "classifier.rsa_cfc": 3,
    "classifier.isim": 1,
    "classifier.mcl": 3,
    "classifier.apc": 3,
    "cams": 2,
    "threshold": 1,
    "affinity-labels": 1,
    "affinity.affinity": 2,
    "boundary.boundary": 2,
    "walk": 2,
    "crf": 1,
    "pseudo": 1,
    "segmenter.segment": 4,
    "predict": 2,
    "evaluate": 2,
}
