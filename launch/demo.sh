#!/usr/bin/env bash
# The complete workflow on generated images: generate, pack, train, evaluate, caption. For `make demo`.
#
# It trains with two processes on a CPU, or with one process per GPU. A user runs the same commands
# on real data.
set -euo pipefail
data=data/demo run=runs/demo
bin=.venv/bin
started=$SECONDS

say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

gpus=$("$bin/python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 0 ]; then
    launch=(--config_file launch/gpus.yaml --num_processes "$gpus")
else
    launch=(--config_file launch/cpu.yaml)
fi
if [ "$gpus" = 1 ]; then
    launch=(--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no)
fi

rm -rf "$data" "$run"

say "generating images with captions in COCO's layout"
"$bin/python" -m shards sample --out "$data" --images 9000 --seed 0

say "packing shards"
"$bin/python" -m shards tokenizer --annotations "$data/annotations/captions_train2017.json" \
    --out "$data/tokenizer.json" --min_count 5
for split in train val; do
    "$bin/python" -m shards build --images "$data/${split}2017" \
        --annotations "$data/annotations/captions_${split}2017.json" \
        --tokenizer "$data/tokenizer.json" --out "$data/shards/$split" --name "$split" \
        --samples_per_shard 500 --resize_short 96 --workers 2
done
"$bin/python" -m shards show "$data/shards/val" --limit 1

say "training"
"$bin/accelerate" launch "${launch[@]}" train.py --config configs/demo.yaml \
    --data.train "$data/shards/train" --data.val "$data/shards/val" --run_dir "$run"

say "evaluating on the validation images"
"$bin/accelerate" launch "${launch[@]}" -m pipeline.evaluate --checkpoint "$run/checkpoints/best" \
    --shards "$data/shards/val" --out "$run/results.json"
"$bin/python" -m shards.sample_data "$run/results.json" "$data/annotations/captions_val2017.json"

say "captioning a few images"
mapfile -t images < <(find "$data/val2017" -name '*.jpg' | sort | head -8)
"$bin/python" -m pipeline.caption --checkpoint "$run/checkpoints/best" --sheet "$run/sheet.png" \
    "${images[@]}"

say "done"
echo "images with captions:    $run/sheet.png"
echo "checkpoint:              $run/checkpoints/best"
echo "TensorBoard:             $bin/tensorboard --logdir $run"
