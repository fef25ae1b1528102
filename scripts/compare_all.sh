#!/usr/bin/env bash
# Compare all methods and baselines on one data set, three seeds, about ten passes over the data each:
#     scripts/compare_all.sh DATA NAME MODALITY,MODALITY[,...] [OPTION ...]
# Runs go to runs/NAME, tables to results/NAME; what was stopped goes on. Warm-ups, resets and the like are as large a
# share of the ten epochs as their defaults are of 70. Methods of several passes per epoch have fewer epochs:
# SMV_EPOCHS for SampleSMV, BENCHMARK_EPOCHS for ReconBoostBalanceBenchmark.
set -euo pipefail
data=$1 name=$2 modalities=$3
shift 3
singles=()
for modality in ${modalities//,/ }; do singles+=("Unimodal:modality=$modality"); done
exec "${BMLR:-bmlr}" compare "$data" --trainer.epochs 10 --trainer.accelerator cpu --seeds 0 1 2 --baseline Joint \
    --runs "runs/$name" --out "results/$name" "$@" --methods \
    Joint "${singles[@]}" Ensemble Ensemble:weights=validation Pretrained Pretrained:freeze=true UniformBaseline \
    BMLR OnlyTPO OnlyReshape VanillaReshape UniDistill UniReshaping CML DGL LFM MBSD MCR PMR:entropy_epochs=2 \
    GBlend:super_epoch=3 TCMax CMLBalanceBenchmark LFMBalanceBenchmark MBSDBalanceBenchmark AGM:last_epoch=2 AMSS CGGM MLB \
    MSLR:memory=2 OGMGE:last_epoch=6 InfoReg MIDAS:warmup=1 OPM:warmup=1 AMCo DiagnosingRelearning:reinit_epoch=3 \
    ModalitySMV:warmup=2@9 ReconBoost:t1=1,t2=1@5 "ReconBoostBalanceBenchmark@${BENCHMARK_EPOCHS:-3}" Remix:warmup=2 \
    "SampleSMV:warmup=2@${SMV_EPOCHS:-6}" MMPareto AUG:check_every=3 MLA Greedy G2D:prioritised_epochs=5 UMT PDF QMF
