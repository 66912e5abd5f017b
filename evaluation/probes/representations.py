"""Information in the representations of patches: linear probes for tissue and label, and separation of classes.

A probe is fitted on patches of training subjects and scored on patches of test subjects.
"""

import numpy as np

from evaluation.prediction.inference import predict_slices
from evaluation.probes.patches import patch_means
from evaluation.report.tables import Table
from evaluation.scores.scores import mean_interval
from utils.runs import child_seed

PENALTY = 1.0  # of both probes: it weighs as much as one patch, of thousands
PERPLEXITY = 30  # of t-SNE, the usual value
SILHOUETTE_PATCHES = 1000  # largest number per subject: silhouettes need all distances
R2, ACCURACY, SILHOUETTE = "R²", "balanced accuracy", "silhouette"


def represent(network, images, edge, batch_size):
    """Average the feature map of a network over patches.

    Args:
        network: Anything with Keras' `predict_on_batch`, `(batch_size, H, W[, D], C)` to `(batch_size, h, w[, d], F)`.
        images: Slices or crops, `(S, H, W[, D], C)` float32.
        edge: Edge of a patch in pixels of the feature map.
        batch_size: Images per call.

    Returns:
        `(S, P, F)` float32. Only one batch of feature maps is held at a time.
    """
    starts = range(0, len(images), batch_size)
    batches = (predict_slices(network, images[start : start + batch_size], batch_size) for start in starts)
    return np.concatenate([patch_means(maps, edge, images.ndim - 2) for maps in batches])


def probe_values(train, values, test):
    """Predict values from representations: ridge regression on standardised features.

    Args:
        train: Representations that the probe is fitted on, `(n, F)`.
        values: Values of these patches, `(n,)`.
        test: Representations to predict for, `(m, F)`.

    Returns:
        Predicted values, `(m,)`.
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), Ridge(PENALTY)).fit(train, values).predict(test)


def probe_classes(train, classes, test):
    """Predict classes from representations: logistic regression with equal class weights.

    Arguments and result are those of `probe_values`, with integers as values.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=1 / PENALTY, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), regression).fit(train, classes).predict(test)


def r_squared(true, predicted):
    """Return the share of variance that is predicted; below 0 if the mean predicts better, NaN without variance."""
    spread = np.sum((true - np.mean(true)) ** 2, dtype=np.float64)
    return float(1 - np.sum((true - predicted) ** 2, dtype=np.float64) / spread) if spread > 0 else np.nan


def balanced_accuracy(true, predicted):
    """Return the share of correctly classified patches per class, averaged over the classes in `true`."""
    return float(np.mean([np.mean(predicted[true == value] == value) for value in np.unique(true)]))


def silhouette(representations, classes):
    """Return the mean silhouette coefficient with cosine distance, in [-1, 1], averaged within classes first.

    Args:
        representations: `(n, F)`.
        classes: `(n,)` integers.

    Returns:
        1 if classes are compact and far apart, negative if patches are closer to another class than to their own; NaN
        for a single class, or if no class has two patches.

    Reference:
        Rousseeuw, J. Comput. Appl. Math. 1987;20:53. The average over classes is ours.
    """
    from sklearn.metrics import silhouette_samples

    values = np.unique(classes)
    if not 2 <= len(values) < len(classes):
        return np.nan
    each = silhouette_samples(representations, classes, metric="cosine")
    return float(np.mean([each[classes == value].mean() for value in values]))


def by_subject(measure, subjects, *arrays):
    """Apply a measure to all patches and to those of each subject.

    Args:
        measure: Function of the arrays.
        subjects: Subject of each patch, `(n,)`.
        *arrays: `(n, ...)`.

    Returns:
        Dictionary with `value`; `each`, `(subjects,)`, in the order of sorted names, NaN if undefined; and `patches`.
    """
    subjects = np.asarray(subjects)
    parts = [subjects == subject for subject in np.unique(subjects)]
    each = np.array([measure(*(array[part] for array in arrays)) for part in parts])
    return {"value": measure(*arrays), "each": each, "patches": len(subjects)}


def probe_scores(train, test, train_patches, test_patches, quantities):
    """Probe tissue parameters and intensities (R²), and labels, if any (balanced accuracy).

    Args:
        train: Representations of patches of training subjects, `(n, F)`.
        test: The same for test subjects, `(m, F)`.
        train_patches: DataFrame, a row for each patch: `subject`, a column for each quantity, and possibly `label`.
        test_patches: The same for the test patches.
        quantities: Columns to predict, such as `["T1", "T2"]`; may be empty.

    Yields:
        Dictionaries with `measure`, `target` and the result of `by_subject`.
    """
    subjects = test_patches["subject"]
    for name in quantities:
        found = probe_values(train, train_patches[name].to_numpy(), test)
        yield {"measure": R2, "target": name} | by_subject(r_squared, subjects, test_patches[name].to_numpy(), found)
    labels = train_patches["label"].to_numpy() if "label" in train_patches else []
    if len(np.unique(labels)) > 1:
        true, found = test_patches["label"].to_numpy(), probe_classes(train, labels, test)
        yield {"measure": ACCURACY, "target": "label"} | by_subject(balanced_accuracy, subjects, true, found)


def silhouette_scores(test, patches, drawn, seed):
    """Measure the separation of labels, if any, over all test subjects, and of constraint classes within each subject.

    Only labelled patches count, unless there is only one label, which is compared with the rest of the foreground.
    Constraint classes are numbered separately in every subject, so they are compared only within subjects.

    Args:
        test: Representations of test patches, `(m, F)`.
        patches: DataFrame, a row for each patch: `subject`, `constraint_class`, and possibly `label`.
        drawn: Patches used for the silhouette of the labels.
        seed: Integer; used to draw patches from subjects with very many.

    Yields:
        As for `probe_scores`.
    """
    if "label" in patches:
        labels = patches["label"].to_numpy()
        if len(np.unique(labels[labels > 0])) > 1:
            drawn = drawn[labels[drawn] > 0]
        value = silhouette(test[drawn], labels[drawn])
        yield {"measure": SILHOUETTE, "target": "label", "value": value, "each": np.array([]), "patches": len(drawn)}
    classes, few = patches["constraint_class"].to_numpy(), []
    for subject, places in patches.groupby("subject").indices.items():
        generator = np.random.default_rng(child_seed(seed, subject))
        few.append(generator.permutation(places)[:SILHOUETTE_PATCHES])
    each = np.array([silhouette(test[places], classes[places]) for places in few])
    counts = {"value": mean_interval(each)[0], "each": each, "patches": sum(map(len, few))}
    yield {"measure": SILHOUETTE, "target": "constraint class"} | counts


def embed(representations, seed):
    """Embed representations in the plane: t-SNE with cosine distance, initialised by principal components.

    Args:
        representations: `(n, F)`.
        seed: Integer; the same representations and seed give the same result.

    Returns:
        `(n, 2)`, dimensionless.

    Reference:
        van der Maaten and Hinton, JMLR 2008;9:2579.
    """
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(representations) - 1) / 3)
    return TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed).fit_transform(representations)


def probe_table(rows, caption):
    """Arrange the scores in a table with a row for each representation.

    Args:
        rows: List of dictionaries: `representation`, `draw`, `pretrained`, `features`, and the keys from `probe_scores`
            and `silhouette_scores`. Draws of the untrained layers are averaged, first within each subject.
        caption: Description of the numbers.

    Returns:
        A `Table`.
    """
    import pandas

    scores = pandas.DataFrame(rows)
    columns, text = dict.fromkeys(zip(scores["measure"], scores["target"], strict=True)), []
    # A stage may have the name of a probe without a network: `intensity`.
    for (name, pretrained), part in scores.groupby(["representation", "pretrained"], sort=False):
        row = {"Representation": name, "Pretrained": pretrained, "Features": part["features"].iloc[0]}
        for measure, target in columns:
            draws = part[(part["measure"] == measure) & (part["target"] == target)]
            row[f"{measure} {target}"] = _cell(draws["value"].to_numpy(), draws["each"].tolist())
        text.append(row)
    numbers = with_spread(scores)
    return Table("probe", "What representations hold", caption, numbers, pandas.DataFrame(text).astype(str))


def with_spread(scores):
    """Replace the column `each`, values per subject, with their number, mean and standard deviation."""
    counts = [int(np.isfinite(each).sum()) for each in scores["each"]]
    numbers = scores.drop(columns="each").assign(subjects=counts)
    numbers[["subject_mean", "subject_sd"]] = [mean_interval(each)[:2] for each in scores["each"]]
    return numbers


def _cell(values, each):
    """Write the mean over draws, mean ± standard deviation over subjects, and the range if there are several draws."""
    if len(values) == 0 or np.isnan(values).all():
        return "-"
    mean, sd, *_ = mean_interval(np.mean(each, axis=0))
    cell = f"{values.mean():.3f}"
    if not np.isnan(mean):
        spread = f"{mean:.3f} ± " + ("-" if np.isnan(sd) else f"{sd:.3f}")
        cell = spread if np.isclose(mean, values.mean()) else f"{cell} ({spread})"
    return cell + (f" [{values.min():.3f}, {values.max():.3f}]" if len(values) > 1 else "")
