"""Trials of step 4: named changes to its settings, with functions to apply and check them."""

from pydantic import ValidationError

from utils.config.sections import Section

OF_THE_GRID = ("contrasts", "inits", "subjects_n", "repeats", "trials", "chosen")  # the same for every trial


def with_changes(section, changes):
    """Return a section with changed values, checked like one from a file.

    Args:
        section: `FinetuningSection`.
        changes: Dotted key below the section, such as `training.learning_rate`, to its value.

    Returns:
        A `FinetuningSection` without trials.

    Raises:
        pydantic.ValidationError: With these values the section is not valid.
    """
    content = section.model_dump(mode="json", exclude_unset=True, exclude={"trials", "chosen"})
    for path, value in changes.items():
        *parents, key = path.split(".")
        place = content
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
        place[key] = value
    return type(section).model_validate(content)


def refuse_wrong_trials(section):
    """Check every trial as the section itself is checked.

    Args:
        section: `FinetuningSection`, valid except for its trials.

    Raises:
        pydantic.ValidationError: Lists every mistake with its place, `trials.NAME.key` or `chosen.INIT`.
    """
    mistakes = [line for name in section.trials for line in _mistakes_of_trial(section, name)]
    known = ", ".join(section.trials) or "none"
    mistakes += [
        _mistake(("chosen", init), name, f"not one of finetuning.trials ({known})")
        for init, name in section.chosen.items()
        if name not in section.trials
    ]
    if mistakes:
        raise ValidationError.from_exception_data(type(section).__name__, mistakes)


def _mistakes_of_trial(section, name):
    changes, wrong = section.trials[name], []
    for path, value in changes.items():
        if reason := _why_not(section, path):
            wrong.append(_mistake(("trials", name, *path.split(".")), value, reason))
    if wrong:
        return wrong
    try:
        with_changes(section, changes)
    except ValidationError as error:
        kept = ("type", "input", "ctx")
        return [
            {key: found[key] for key in kept if key in found} | {"loc": ("trials", name, *found["loc"])}
            for found in error.errors()
        ]
    return []


def _why_not(section, path):
    """Explain why a trial cannot change a key; None if it can."""
    first, *_ = names = path.split(".")
    if first in OF_THE_GRID:
        return "is the same for every trial; remove it"
    places = [section]
    for name in names:
        places.append(places[-1].get(name) if isinstance(places[-1], dict) else getattr(places[-1], name, None))
    if isinstance(places[-1], Section):
        example = next(iter(type(places[-1]).model_fields))
        return f"is a section; name single keys of it, such as '{path}.{example}'"
    if any(isinstance(place, bool | int | float | str | list) for place in places[:-1]):
        return "no such key: what stands before the last dot is a single value, not a section"
    return None


def _mistake(place, found, reason):
    return {"type": "value_error", "loc": place, "input": found, "ctx": {"error": ValueError(reason)}}


def mistakes_of_trials(config):
    """Yield conflicts between trials and the other sections of a config, one line per mistake."""
    for name in config.finetuning.trials if config.finetuning else ():
        settings = config.finetuning.settings_of(None, name)
        try:
            config.model_copy(update={"finetuning": settings}).check_sections()
        except ValueError as error:
            for line in str(error).splitlines():
                key = line.removeprefix("finetuning.")
                yield f"finetuning.trials.{name}{'.' if key != line else ': '}{key}"


def drop_grid_keys(plain):
    """Return the plain section without the keys of the grid: the settings that affect a cell."""
    return {key: value for key, value in plain.items() if key not in OF_THE_GRID}
