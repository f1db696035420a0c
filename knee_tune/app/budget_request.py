"""Which budget search a person asks for, and what it comes to once files and options are merged."""

from dataclasses import dataclass, replace
from itertools import product

from knee_tune.app.request import StudyRequest
from knee_tune.app.workshop import Workshop
from knee_tune.errors import UserError
from knee_tune.planning.planner import BASELINES
from knee_tune.specs.budget import KNEE, check_budgets, check_distinct, read_target
from knee_tune.specs.problems import nearest
from knee_tune.specs.recipe import Recipe
from knee_tune.specs.space import (
    DEFAULT_EXPLORE_FRACTION,
    LARGEST_LR,
    SMALLEST_LR,
    ExploreFractionSpace,
)
from knee_tune.specs.study import StudySpec

SCHEDULES = (KNEE, *BASELINES)
"""What is compared unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class BudgetRequest:
    """A budget search as options name it."""

    study: StudyRequest
    """Task, preset, settings, random seeds; its name, if any, names the search."""
    target: str
    budgets: tuple[int, ...]
    """In epochs, ascending."""
    seed_lrs: tuple[float, ...] = ()
    """Empty: the recipe's own. The same for every schedule."""
    explore_fractions: tuple[float, ...] = ()
    """Empty: the paper's 50 %. Knee only."""
    schedules: tuple[str, ...] = SCHEDULES

    def resolve(self) -> "Search":
        """The validated search; UserError otherwise. Creates nothing."""
        check_budgets(self.budgets)
        check_distinct("--schedules", self.schedules)
        for name in self.schedules:
            if name not in SCHEDULES:
                close = nearest(name, SCHEDULES)
                meant = f"did you mean '{close}'? " if close else ""
                known = ", ".join(SCHEDULES)
                raise UserError(f"--schedules {name}: not known; {meant}known: {known}")
        if self.explore_fractions and KNEE not in self.schedules:
            raise UserError("--explore-fractions: only knee explores; add it to --schedules")
        if any("recipe.epochs" in setting for setting in self.study.settings):
            raise UserError("--set recipe.epochs: --budgets names the epochs")
        first, recipe = self._at(self.budgets[0], name=self.study.name)
        target = read_target(self.target, recipe.metric(recipe.objective))
        shown = f"{target:g}".replace("+", "")
        name = self.study.name or f"budget-{first.subject}-{first.preset}-{shown}"
        seed_lrs = self.seed_lrs or (recipe.seed_lr,)
        check_distinct("--seed-lrs", seed_lrs)
        for seed_lr in seed_lrs:
            if not SMALLEST_LR <= seed_lr <= LARGEST_LR:
                raise UserError(
                    f"--seed-lrs {seed_lr:g}: must lie between {SMALLEST_LR:g} and {LARGEST_LR:g}"
                )
        fractions = self.explore_fractions or (DEFAULT_EXPLORE_FRACTION,)
        check_distinct("--explore-fractions", fractions)
        for fraction in fractions:
            if not 0 <= fraction < 1:
                raise UserError(
                    f"--explore-fractions {fraction:g}: must lie between 0 and 1, as in 0.5"
                )
        return Search(
            name=name,
            target=target,
            schedules=self.schedules,
            seed_lrs=seed_lrs,
            explore_fractions=tuple(sorted(fractions)),
            budgets={epochs: self._at(epochs, name=name) for epochs in self.budgets},
        )

    def _at(self, epochs: int, *, name: str | None) -> tuple[StudySpec, Recipe]:
        settings = (*self.study.settings, f"recipe.epochs={epochs}")
        spec, recipe = replace(self.study, settings=settings, name=name).resolve()
        if recipe.epochs != epochs:
            raise UserError(
                f"--set scale={spec.scale:g}: --budgets names the epochs that are trained; leave "
                "the scale out"
            )
        return spec, recipe


@dataclass(frozen=True, kw_only=True)
class Search:
    """A budget search, resolved: every budget is a recipe of its own."""

    name: str
    target: float
    schedules: tuple[str, ...]
    seed_lrs: tuple[float, ...]
    explore_fractions: tuple[float, ...]
    budgets: dict[int, tuple[StudySpec, Recipe]]

    @property
    def spec(self) -> StudySpec:
        """Of the smallest budget; they differ in their epochs only."""
        return next(iter(self.budgets.values()))[0]

    @property
    def recipe(self) -> Recipe:
        """Of the smallest budget."""
        return next(iter(self.budgets.values()))[1]

    @property
    def metric(self) -> str:
        """What the target is of, with its split."""
        return f"valid_{self.recipe.objective}"

    def at(self, workshop: Workshop, epochs: int) -> Workshop:
        """``workshop`` at that budget: same worker groups, same data, same trunks.

        Its explore fractions are those at which any run of the search leaves a trunk, so that the
        trunk is kept there, whichever run trains it.
        """
        spec, recipe = self.budgets[epochs]
        # A warmup that is a share was made steps for the smallest budget: they share trunks.
        warmup = {"warmup": None, "warmup_steps": workshop.recipe.warmup_steps}
        recipe = recipe.model_copy(update=warmup)
        shares = {f * other / epochs for f in self.explore_fractions for other in self.budgets}
        knees = ExploreFractionSpace(values=tuple(sorted(share for share in shares if share < 1)))
        space = spec.space.model_copy(update={"explore_fraction": knees})
        changes = {"space": space, "recipe": recipe.model_dump(mode="json")}
        return replace(workshop, spec=spec.model_copy(update=changes), recipe=recipe)

    def points(self, schedule: str) -> list[tuple[float | None, float]]:
        """Explore fraction and seed LR of every setting of a schedule."""
        fractions = self.explore_fractions if schedule == KNEE else (None,)
        return list(product(fractions, self.seed_lrs))
