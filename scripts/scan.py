"""How many clusters? ``scripts/scan.py data=usps [k=2..20]``, and any override of ``train.py``."""

from clusterlab.scan import main

if __name__ == "__main__":
    main()
