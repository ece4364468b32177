//! Jobs on Slurm clusters as custom resources.
