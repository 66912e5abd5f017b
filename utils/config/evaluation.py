"""The section `evaluation` of a config: what steps 4 and 5 score, and how."""

from pydantic import Field, PositiveFloat, model_validator

from utils.config.sections import ADDED, Name, Section

OVERLAP = 0.1  # smallest IoU of a detected lesion, usual for lesions (docs/deviations.md, "Lesions")


class EvaluationSection(Section):
    """Scores and tables (steps 4 and 5)."""

    surface_tolerance_mm: PositiveFloat = Field(2.0, description="tolerance of the surface Dice")
    regions: dict[Name, list[Name]] = Field(
        {},
        json_schema_extra=ADDED,
        description="name: classes of data.labels to merge; regions may overlap and are scored instead of the classes",
    )
    lesions: list[Name] = Field(
        [],
        json_schema_extra=ADDED,
        description="labels (or regions) whose connected components are lesions, to be counted and matched as well",
    )
    lesion_overlap: float = Field(
        OVERLAP,
        gt=0,
        le=1,
        json_schema_extra=ADDED,
        description="smallest intersection over union at which a predicted lesion detects a reference lesion",
    )

    @model_validator(mode="after")
    def _regions_unite_classes(self):
        for name, members in self.regions.items():
            if not members or len(set(members)) < len(members):
                raise ValueError(f"regions.{name}: {members} must name at least one class, and each once")
        return self

    @model_validator(mode="after")
    def _lesions_are_named_once(self):
        if len(set(self.lesions)) < len(self.lesions):
            raise ValueError(f"lesions: {self.lesions} must name each label once")
        if self.lesion_overlap != OVERLAP and not self.lesions:
            raise ValueError("lesion_overlap: has no effect without lesions; name the labels there, or remove it")
        return self

    def mistakes(self, labels):
        """Yield contradictions to the classes of a config.

        Args:
            labels: Class names, `data.labels`.
        """
        for region, members in self.regions.items():
            for name in members:
                if name not in labels:
                    yield f"evaluation.regions.{region}: '{name}' is not one of data.labels ({', '.join(labels)})"
        where, scored = ("evaluation.regions", self.regions) if self.regions else ("data.labels", labels)
        for name in self.lesions:
            if name not in scored:
                yield f"evaluation.lesions: '{name}' is not one of {where} ({', '.join(scored)}), which are scored"
