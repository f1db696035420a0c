"""The folder of a script's registered model: its weights, its code, and what serves them."""

import json
import shutil
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from knee_tune.errors import UserError, first_line
from knee_tune.records.events import TrainedModel
from knee_tune.scripts.imports import imports_of


def save_script_model(model: TrainedModel, place: Path, mlflow_model: Any) -> Path:
    """Write the model's folder below ``place``.

    A script that said in ``run.finish`` what serves it becomes a pyfunc model, tried out before
    anybody can get it; of another the weights and the code are there as they are. UserError if what
    serves it is missing, or cannot load its weights.
    """
    script = Path(model.recipe["script"])
    if not script.is_file():
        raise UserError(f"{script}: the script is gone; put it back to register its model")
    module = model.serve.partition(":")[0] if model.serve else ""
    serving = script.parent.joinpath(*module.split(".")).with_suffix(".py")
    if module and not serving.is_file():
        raise UserError(
            f"{script.name}: run.finish(serve={model.serve!r}): no {serving.name} lies beside it"
        )
    own, installed = imports_of(script.parent, [script, *([serving] if module else [])])
    code = place / "code"
    for file in own:
        target = code / file.relative_to(script.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    folder = place / "model"
    if not module:
        folder.mkdir()
        code.rename(folder / "code")
        shutil.copyfile(model.weights, folder / model.weights.name)
        (folder / "recipe.json").write_text(json.dumps(model.recipe, indent=2))
        return folder
    _save_served(model, place, folder, code, installed, mlflow_model)
    return folder


def _save_served(
    model: TrainedModel,
    place: Path,
    folder: Path,
    code: Path,
    installed: tuple[str, ...],
    mlflow_model: Any,
) -> None:
    import mlflow.pyfunc

    from knee_tune.tracking import serving_script

    order = place / "order.json"
    order.write_text(json.dumps({"serve": model.serve}))
    artifacts = {serving_script.ORDER: order, serving_script.WEIGHTS: model.weights}
    mlflow.pyfunc.save_model(
        folder,
        python_model=serving_script.__file__,
        artifacts={name: path.absolute().as_uri() for name, path in artifacts.items()},
        code_paths=[str(path) for path in sorted(code.iterdir())],
        pip_requirements=_requirements(installed),
        mlflow_model=mlflow_model,
    )
    try:
        mlflow.pyfunc.load_model(folder.as_uri())
    except Exception as error:  # of the script's author
        raise UserError(
            f"run.finish(serve={model.serve!r}): it does not load the weights: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _requirements(modules: tuple[str, ...]) -> list[str]:
    """The distributions that these modules are from, as they are installed here."""
    provided = packages_distributions()
    tops = {name.partition(".")[0] for name in modules}
    names = {each for top in tops for each in provided.get(top, ())}
    return sorted(f"{name}=={version(name)}" for name in names)
