#!/bin/sh
# Upload all offline W&B runs below a folder: scripts/sync_wandb.sh runs
find "${1:?expected a folder of runs, got none}" -name 'offline-run-*' -exec wandb sync {} +
