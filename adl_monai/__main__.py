"""``python -m adl_monai``: the command line, also under torchrun."""

from adl_monai.cli import main

if __name__ == "__main__":
    main()
