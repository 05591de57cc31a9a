"""Label new images: ``scripts/predict.py run=<folder> input=<npz, image folder or image>``."""

from clusterlab.predict import main

if __name__ == "__main__":
    main()
