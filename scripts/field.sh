#!/usr/bin/env bash
# Compare every method of the library on one data set, ten epochs and three seeds each: scripts/field.sh DATA FOLDER FIRST [OPTION …]
# FIRST is the modality of the first row; the others of MODALITIES follow. Warm-ups and the like are as large a share of
# ten epochs as they are of the 70 their defaults are meant for; methods of several passes per epoch have fewer epochs.
set -euo pipefail
data=$1 folder=$2 modalities=$3
shift 3
singles=()
for modality in ${modalities//,/ }; do singles+=("Unimodal:modality=$modality"); done
exec "${BMLR:-bmlr}" compare "$data" --trainer.epochs 10 --trainer.accelerator cpu --seeds 0 1 2 --baseline Joint \
    --runs "runs/$folder" --out "results/$folder" "$@" --methods \
    Joint "${singles[@]}" Ensemble Ensemble:weights=validation Pretrained Pretrained:freeze=true UniformBaseline \
    BMLR OnlyTPO OnlyReshape VanillaReshape UniDistill UniReshaping CML DGL LFM MBSD MCR PMR:entropy_epochs=2 \
    GBlend:super_epoch=3 TCMax CMLBalanceBenchmark LFMBalanceBenchmark MBSDBalanceBenchmark AGM:last_epoch=2 AMSS CGGM MLB \
    MSLR:memory=2 OGMGE:last_epoch=6 InfoReg MIDAS:warmup=1 OPM:warmup=1 AMCo DiagnosingRelearning:reinit_epoch=3 \
    ModalitySMV:warmup=2@9 ReconBoost:t1=1,t2=1@5 ReconBoostBalanceBenchmark@5 Remix:warmup=2 SampleSMV:warmup=2@6 \
    MMPareto AUG:check_every=3 MLA Greedy G2D:prioritised_epochs=5 UMT PDF QMF
