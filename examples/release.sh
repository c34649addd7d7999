#!/bin/sh
# A release step: compress a model, prove that it may be shipped, keep the evidence.
#
#   sh examples/release.sh model.onnx calibration.zip evaluation.zip dist
#
# Afterwards dist/model.onnx is there if, and only if, every gate was met (exit status 0; 1 where one was not). The
# evidence stays in dist either way, and so does a candidate that only the latency refused. What has to hold can be
# set from outside, as in MIN_AGREEMENT=0.99 sh release.sh ...
set -eu

if [ $# -ne 4 ]; then
    echo "usage: sh release.sh MODEL.onnx CALIBRATION EVALUATION FOLDER" >&2
    exit 2
fi
model=$1 calib=$2 judged=$3 dist=$4

recipe=${RECIPE:-"id(flops=0.5)"}
min_agreement=${MIN_AGREEMENT:-0.98}
min_class_agreement=${MIN_CLASS_AGREEMENT:-0.9}
max_bytes=${MAX_BYTES:-2MB}
max_latency_ratio=${MAX_LATENCY_RATIO:-0.8}
seconds=${SECONDS_PER_SETTING:-10}

# An older result must not pass for this one's.
candidate="$dist/candidate"
mkdir -p "$candidate" || exit 4
rm -f "$dist/model.onnx" "$dist/model.onnx.data" "$candidate/model.onnx" "$candidate/model.onnx.data"

# A job's page takes the summary where there is one: GitHub Actions names its file here.
set -- --report "$dist/report.json" --report "$dist/report.html" --junit "$dist/gates.xml"
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
    set -- "$@" --summary "$GITHUB_STEP_SUMMARY"
fi

# 0: every gate was met; 1: one was not, and no model was written; anything else: nothing was judged.
status=0
onnxprune apply "$recipe" --in "$model" --out "$candidate/model.onnx" --calib "$calib" --eval "$judged" \
    --min-agreement "$min_agreement" --min-class-agreement "$min_class_agreement" --max-bytes "$max_bytes" \
    "$@" || status=$?
case $status in
    0) ;;
    1) echo "not released: a gate was not met, see $dist/report.html" >&2; exit 1 ;;
    *) echo "not released: apply ended with status $status" >&2; exit "$status" ;;
esac

# Latency is judged apart: several openings of both models on one thread say more than the report's own look.
onnxprune bench "$model" "$candidate/model.onnx" --threads 1 --seconds "$seconds" \
    --max-latency-ratio "$max_latency_ratio" --junit "$dist/latency.xml" > "$dist/latency.txt" || status=$?
cat "$dist/latency.txt"
case $status in
    0) ;;
    1) echo "not released: too slow, see $dist/latency.txt; the candidate stays in $candidate" >&2; exit 1 ;;
    *) echo "not released: bench ended with status $status" >&2; exit "$status" ;;
esac

# External data first: once model.onnx is there, all of it is.
if [ -f "$candidate/model.onnx.data" ]; then
    mv "$candidate/model.onnx.data" "$dist/model.onnx.data" || exit 4
fi
mv "$candidate/model.onnx" "$dist/model.onnx" || exit 4
rmdir "$candidate" || :
echo "released: $dist/model.onnx"
