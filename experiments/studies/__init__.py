"""Studies, one question a file: a new one is its file, with a `STUDY`, and a line here."""

STUDIES = {  # by name, the module; it is imported when it is asked for
    "gradients": "experiments.studies.gradients",
}
