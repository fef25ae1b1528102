"""Wrong usage of every command: one sentence that says what to do."""

import re
import shlex
from pathlib import Path

import pytest

from bmlr.cli import main

#: Words of Python, which a user of the command need not know.
PYTHON = re.compile(
    r"NoneType|typing|Literal\[|Optional|Union\[|<class|<function|Traceback|\bdict\b|\bbool\b|object at"
)

CASES = """
trian -> There is no command trian. Did you mean 'train'?
--verbose -> There is no command --verbose. Did you mean '--version'?
help trian -> There is no command trian. Did you mean 'train'?
help train trianer -> There is no help on trianer. Did you mean 'trainer'?
help report table -> There is no help on table.
train --data.help digitz -> There is no help on digitz. Did you mean 'digits'?
train -> bmlr train needs --data: one of digits, avmnist, crema-d
train digits -> bmlr train needs --method: one of Joint, Ensemble, Pretrained
train --methd BMLR -> There is no option --methd. Did you mean '--method'?
train --metods BMLR -> There is no option --metods. Did you mean '--method'?
train digitz --method BMLR -> Found digitz. Did you mean 'digits'?
train --data digts --method BMLR -> Option --data should be one of digits, avmnist
train digits --method BMRL -> Found BMRL. Did you mean 'BMLR'?
train digits --method BMLR --model.fusion flim -> bigated, mmcosine, mmtm. Found flim. Did you mean 'film'?
train digits --method BMLR --trainer.epoch 3 -> There is no option --trainer.epoch. Did you mean '--trainer.epochs'?
train digits --method BMLR --model.witdh 3 -> There is no option --model.witdh. Did you mean '--model.width'?
train digits --method BMLR --epochs 3 -> There is no option --epochs. Did you mean '--trainer.epochs'?
train digits --method BMLR --lr 1 -> There is no option --lr. Did you mean '--optimizer.lr'?
train digits --method BMLR --trainer.epochs three -> Option --trainer.epochs should be a whole number. Found three.
train digits --method BMLR --trainer.epochs 2.5 -> Option --trainer.epochs should be a whole number. Found 2.5.
train digits --method BMLR --trainer.epochs -> Option --trainer.epochs needs a value: a whole number.
train digits --method BMLR --trainer.batch_size 0 -> Option --trainer.batch_size should be an integer of at least 1.
train digits --method BMLR --method.alpha -1 -> --method.alpha should be a positive finite number. Found -1.0.
train digits --method BMLR --method.beta 1.5 -> Option --method.beta should lie in [0, 1]. Found 1.5.
train digits --method BMLR --method.gamma 2 -> Method BMLR has no parameter gamma. Its parameters are alpha, beta.
train digits --method BMLR --method.alhpa 1 -> Its parameters are alpha, beta. Did you mean 'alpha'?
train digits --method Joint --method.alpha 1 -> Method Joint has no parameter alpha. It has none.
train digits --method BMLR --method.alpha.b 1 -> Method BMLR has no parameter alpha.b.
train digits --method BMLR --data.seed 1 -> Data set digits has no parameter seed. Its parameters are pairing_seed
train --method.alpha 1 --data digits -> Option --method.alpha needs --method too
train crema-d --method BMLR -> Data set crema-d needs --data.root: a path. The folder that bmlr prepare made, or
train mosi --method BMLR -> Option --data.root should be the folder that bmlr prepare made, or the published file. It is
train wiki --method BMLR -> Option --data.root should be the folder that holds wiki/data.npz. It is not given, and
inspect avmnist -> Option --data.root should be the folder with the images and recordings, in mnist and fsdd. It is not
inspect avmnist --data.root /nowhere -> /nowhere
train digits --method BMLR --seed x -> Option --seed should be a whole number. Found x.
train digits --method BMLR --resume maybe -> bmlr train takes one data set. Found digits, and maybe too.
train digits --method BMLR -v -> There is no option -v.
train digits --method BMLR -seed 3 -> There is no option -seed. Did you mean '--seed'?
train digits --data digits --method BMLR -> bmlr train takes one data set.
train digits --method BMLR --trainer.precision 8 -> should be one of 32-true, 64-true, bf16-mixed, 16-mixed. Found 8.
train digits --method BMLR --optimizer.betas 0.9 -> should be numbers in brackets, as [0.1,0.2]. Found 0.9.
train digits --method BMLR --optimizer.milestones [x] -> should be whole numbers in brackets, as [1,2]. Found [x].
train digits --method BMLR --trainer.progress perhaps -> Option --trainer.progress should be true or false.
train digits --method BMLR --run /dev/null/run -> The run folder /dev/null/run cannot be written
train digits --method BMLR --config nowhere.yaml -> There is no configuration file nowhere.yaml
train digits --method BMLR --model nowhere.yaml -> There is no configuration file nowhere.yaml
train digits --method BMLR --model aliases.yaml -> aliases are not taken
train digits --method BMLR --model zero.yaml -> zero.yaml.width should be an integer of at least 1. Found 0.
train digits --method BMLR --model list.yaml -> list.yaml should hold options by name
train digits --method BMLR --data.samples -> Option --data.samples needs a value
train synthetic --method BMLR --data.samples 3 -> Option --data.samples should be whole numbers by name
train synthetic --method BMLR --data.samples {train: -> Option --data.samples should be whole numbers by name
train nomodule.Data --method BMLR -> The data set: nomodule cannot be imported: No module named 'nomodule'.
train digits --method bmlr.data.Digits -> Option --method: bmlr.data.Digits should be a class derived from
evaluate -> bmlr evaluate needs RUN: bmlr evaluate RUN [options]
evaluate a b -> bmlr evaluate takes RUN and options. Found one word more: b.
evaluate nowhere -> There is no run in nowhere
evaluate a --split testing -> Option --split should be one of train, val, test. Found testing.
evaluate a --import nowhere -> Option --import: nowhere cannot be imported
predict -> bmlr predict needs RUN, FILES: bmlr predict RUN FILES... [options]
predict nowhere a.wav -> There is no run in nowhere
predict nowhere a.wav --jsn -> There is no option --jsn. Did you mean '--json'?
diagnose a --removal cut -> Option --removal should be one of absent, zero, mean, shuffle, noise. Found cut.
prepare crema-d a -> bmlr prepare needs DEST: bmlr prepare DATA SOURCE DEST [options]
prepare cremad a b -> Did you mean 'crema-d'?
prepare ave a b --size 1 -> Option --size should be an integer of at least 8. Found 1.
prepare ave a b --workers many -> Option --workers should be a whole number. Found many.
prepare ave a b --trainlist x -> There is no option --trainlist. Did you mean '--train-list'?
inspect digits --samples few -> Option --samples should be a whole number. Found few.
compare digits -> Options --data and --methods belong together
compare -> There are no runs to compare: no folder runs. Name it with --runs, or make runs: bmlr compare DATA --methods
compare digits --methods -> Option --methods needs at least one value.
compare digits --methods BMLR:gamma=2 -> has no parameter gamma. It has alpha, beta.
compare digits --methods BMLR --seeds a -> Option --seeds should be a whole number. Found a.
compare digits --methods BMLR --engine spark -> Option --engine should be local or ray. Found spark.
compare digits --methods BMLR --address auto -> Option --address is for --engine ray only.
compare digits --methods BMLR --processes 0 -> Option --processes should be an integer of at least 1. Found 0.
tune digits --methods BMLR --space alpha=0:1 --sampler random -> Option --sampler should be tpe or grid. Found random.
report -> bmlr report needs RUNS: bmlr report RUNS... [options]
reproduce table1 --scale large -> Option --scale should be paper or small. Found large.
reproduce table1 --data digitz -> Did you mean 'digits'?
reproduce table9 -> NAMES should be among table1, table2
report . --out page -> Option --out should be a file named .html
evaluate a --part test -> There is no option --part. bmlr evaluate --help lists the options.
methods --format xml -> Option --format should be one of table, markdown, json. Found xml.
train digits --method BMLR --run '' -> Option --run should be a path. Found nothing.
report . --out zero.yaml/page.html -> Option --out: zero.yaml/page.html cannot be written, zero.yaml is a file.
predict a b --out . -> Option --out should be a file. . is a folder.
inspect digits --sheet zero.yaml/a/b.png -> Option --sheet: zero.yaml/a/b.png cannot be written
diagnose a --out zero.yaml -> Option --out: zero.yaml cannot be written, zero.yaml is a file.
compare digits --methods BMLR --out zero.yaml -> Option --out: zero.yaml cannot be written
tune digits --methods BMLR --space beta=0:1 --out zero.yaml -> Option --out: zero.yaml cannot be written
reproduce table1 --out zero.yaml -> Option --out: zero.yaml cannot be written
compare digits --methods BMLR --trainer.accelerator cpu --trainer.devices 999 -> asks for 999 processes
tune digits --methods BMLR --space beta=0:1 --trainer.num_nodes 2 -> nothing tells which of the 2 machines
reproduce table1 --trainer.accelerator gpuu -> Did you mean 'gpu'?
methods extra -> The method should be one of Joint, Ensemble
"""


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_wrong_usage_gets_one_sentence(capsys, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BMLR_DATA", raising=False)
    Path("aliases.yaml").write_text("fusion: &name sum\nstem: *name\n")
    Path("list.yaml").write_text("- 1\n")
    Path("zero.yaml").write_text("width: 0\n")
    words, _, message = case.partition(" -> ")
    assert main(shlex.split(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bmlr: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not PYTHON.search(captured.err)
    assert not list(tmp_path.glob("runs*"))
