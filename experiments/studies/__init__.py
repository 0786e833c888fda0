"""Studies, one question a file: a new one is its file, with a `STUDY`, and a line here."""

import functools
import importlib
from pathlib import Path

from experiments.cli.errors import chosen
from experiments.results import evidence
from experiments.results.evidence import Evidence
from experiments.results.study import Study

STUDIES = {  # by name, the module; it is imported when it is asked for
    "gradients": "experiments.studies.gradients",
    "covariate_shift": "experiments.studies.covariate_shift",
    "learning_rate": "experiments.studies.learning_rate",
    "batch_size": "experiments.studies.batch_size",
    "regularizers": "experiments.studies.regularizers",
    "shift": "experiments.studies.shift",
    "clothes": "experiments.studies.clothes",
    "variance_shift": "experiments.studies.variance_shift",
    "averaged_weights": "experiments.studies.averaged_weights",
    "recurrent": "experiments.studies.recurrent",
    "data_width": "experiments.studies.data_width",
    "no_norm": "experiments.studies.no_norm",
    "structures": "experiments.studies.structures",
    "efficiency": "experiments.studies.efficiency",
}
NOT_YET = (  # questions that nobody measured, for the pages
    "Networks that generate, detect, segment or describe images: they are not in the zoo yet.",
)
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "studies"  # of the committed numbers


def study_of(name: str) -> Study:
    """The study of a name.

    Raises:
      UserError: there is none.
    """
    study: Study = importlib.import_module(chosen(STUDIES, name, "the name of a study")).STUDY
    return study


@functools.cache
def measured(name: str) -> Evidence:
    """The committed numbers of a study, as they are when it is first asked for them."""
    return evidence.load(FOLDER / f"{name}.csv")


def all_studies() -> list[tuple[Study, Evidence]]:
    """Every study with its committed numbers."""
    return [(study_of(name), measured(name)) for name in STUDIES]
