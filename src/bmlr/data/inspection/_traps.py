"""Known reasons for wrong or incomparable results on published data sets."""

from __future__ import annotations

#: Sentences by data set, one after each star. ``{samples}`` and ``{classes}`` are the numbers of the data at hand.
_TRAPS = {
    "avmnist": """
        * Pairs are drawn, and every paper has its own recordings, noise and reduction of the images: accuracies on
          AV-MNIST of different sources do not compare.
    """,
    "crema-d": """
        * The published lists (protocol paper) have all 91 actors in training and test, so that a known voice or face
          helps. Accuracies under protocol clean, by actor, are lower and do not compare with published ones.
        * Published accuracies of joint training with a ResNet-18 run from 53 to 76 %: say how many frames, how long the
          audio, whether pretrained, and on which split the epoch was chosen.
    """,
    "kinetics-sounds": """
        * Repositories have 31 to 34 classes, and videos vanish: here are {classes} classes and {samples} clips.
          Accuracies on other numbers of either do not compare.
    """,
    "ave": """
        * A video with several events has several lines, and lists may have it in two splits. The target is an event of
          the whole video: accuracies of localisation, per second, do not compare.
    """,
    "ucf-101": """
        * There are three published splits, and papers give one or the mean of all: say which. Videos of one group look
          alike, so that a split drawn without groups is far too easy.
        * HandstandPushups is written in two ways in lists and folders: check that it has its videos here.
    """,
    "food-101": """
        * Several pages have the same title, also in training and test (protocol paper), and many titles name the dish:
          text alone is strong.
        * Images are search results of the class, some of them wrong or damaged: here are {samples} pages. Food-101 of
          Bossard et al. has other images and no texts.
    """,
    "mvsa-single": """
        * Pairs labelled positive in one modality and negative in the other are left out, and neutral yields to the
          other label: of 4,869 pairs 4,511 stay. Papers with another rule have other pairs; here are {samples}.
        * There is no published split: papers draw their own. Here tweets with the same text are one group.
    """,
    "mosi": """
        * Files have 2,199 clips, some 2,183: here are {samples}. The test split has 686 at most, of which one is 0.15
          points of accuracy.
        * Acc-2 counts a score of zero as non-negative (Has0) or leaves it out (Non0): say which.
    """,
    "mosei": """
        * Feature files have 22,856 clips, the data set 23,453, and some programs leave out clips without text: here are
          {samples}.
        * Acc-2 counts a score of zero as non-negative (Has0) or leaves it out (Non0): say which.
    """,
    "ch-sims": """
        * The published split is one of clips: source videos and their speakers are in several splits. Protocol clean
          draws the splits by video, and does not compare with published figures.
        * In two classes zero is non-positive, other than in MOSI. The labels of single modalities are not read.
    """,
    "ur-funny": """
        * There are two versions, the second without noisy and repeated instances; the first has 16,514, here are
          {samples}.
        * The file's identifiers do not name the talk, so that speakers in several splits cannot be seen here.
    """,
    "mustard": """
        * The data set has 690 utterances, here are {samples}: of a test split of 138 one is 0.7 points of accuracy.
        * The file's identifiers do not name the speaker. Sarcasm goes with the character, so that a split that shares
          speakers is easier than one that does not.
    """,
    "wiki": """
        * The published split (protocol paper) has sections of 401 articles in training and test, 552 of the 693 test
          sections. An article has one category, and its sections have words in common, so that published accuracies are
          too high. Protocol clean leaves these articles out of training: 1,187 of 2,173 sections stay.
        * It is not known on which part tf-idf and visual words were fit; they need no labels.
    """,
    "mfeat": """
        * The six are features of one image, not sensors, and nearly all are near the ceiling: a difference of 0.5
          points is 2 of the 400 test samples. Writers are not known, and may be in several splits.
    """,
    "mmmo": """
        * Here are {samples} samples, 80 of them for testing: one is 1.25 points, and 5 points are within chance.
          Speakers are not known. The classes are ratings below 3.5 and others, not the source's.
    """,
    "mosi-utterances": """
        * With features=published, text and video come from networks that were trained with the labels of the training
          split: it is far easier than test, and a validation split cut from it tells nothing of test.
        * The published split is not that of CMU's SDK: 24 of its 31 test videos are in the SDK's training fold.
          Accuracies in the two do not compare.
    """,
}


def known_traps(name: str, samples: int, classes: int) -> tuple[str, ...]:
    """Sentences on a published data set; empty for any other.

    Args:
        name: Name of the data set.
        samples: Number of samples in all splits.
        classes: Number of classes.

    Example:
        >>> known_traps("synthetic", 100, 2)
        ()
    """
    text = _TRAPS.get(name, "").format(samples=f"{samples:,}", classes=classes)
    return tuple(" ".join(trap.split()) for trap in text.split("* ")[1:])
