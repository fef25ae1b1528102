"""The commands of ``bmlr``, one module each, imported when that command is chosen.

A module has a function ``execute``: its parameters are the options, its docstring their help, and it prints its result.
"""

#: What each command does. The first lines of the functions' docstrings say the same, known without importing them.
COMMANDS = {
    "train": "Train a model on a data set by a method.",
    "evaluate": "Score the weights of a run on a split.",
    "diagnose": "Find the undertrained modalities of a run.",
    "predict": "Predict the class of one sample from its files.",
    "methods": "List the methods with papers, costs and defaults.",
    "prepare": "Decode a data set into a folder for training.",
    "inspect": "Check a data set and draw samples of it.",
    "report": "Write runs as one offline HTML page.",
    "compare": "Train and compare methods over several seeds.",
    "tune": "Search parameters of methods on the validation split.",
    "reproduce": "Make the tables and figures of the BMLR paper.",
}

__all__ = ["COMMANDS"]
