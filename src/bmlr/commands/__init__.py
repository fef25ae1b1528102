"""The commands of ``bmlr``, one module each, imported by need.

A module has a function ``execute``: its parameters are the options, its docstring their help, and it prints its result.
"""

#: Commands in the order of the work. The first lines of their docstrings say the same, known without importing them.
COMMANDS = {
    "prepare": "Decode a data set into a folder for training.",
    "inspect": "Check a data set and draw samples of it.",
    "train": "Train a model on a data set by a method.",
    "evaluate": "Score the weights of a run on a split.",
    "predict": "Predict the classes, labels or numbers of new files.",
    "export": "Write the model of a run for services.",
    "diagnose": "Find the undertrained modalities of a run.",
    "compare": "Train and compare methods over several seeds.",
    "tune": "Search parameters of methods on the validation split.",
    "report": "Write runs as one offline HTML page.",
    "reproduce": "Make the tables and figures of the BMLR paper.",
    "methods": "List the methods with families, costs, tasks and defaults.",
    "completion": "Print a script for completion by the Tab key.",
}

__all__ = ["COMMANDS"]
