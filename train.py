"""Train one run, or a sweep of them: ``python train.py model=dcec data=usps``."""

from clusterlab.cli import main

if __name__ == "__main__":
    main()
