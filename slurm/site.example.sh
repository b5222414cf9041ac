# shellcheck shell=bash disable=SC2034
# Copy to slurm/site.sh, which git ignores, and change it; every script here reads it.

# What sbatch takes from the environment, for the jobs and for the job of the pages.
export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=myproject

GPU_TYPE=h100                 # asks for --gres=gpu:h100:N
GPUS_PER_NODE=4               # a job that needs more is put on several nodes
THROTTLE=4                    # as many tasks of an array at a time
JOB_OPTIONS=(--time=08:00:00) # for the jobs alone; what follows -- wins over it

# module load cuda
# conda activate wanreport
