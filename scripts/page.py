"""Write a run's page again, or those of many runs and an index: ``scripts/page.py <folder>``."""

from clusterlab.page import main

if __name__ == "__main__":
    main()
