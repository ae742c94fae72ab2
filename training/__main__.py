"""``python -m training``: the same as ``lienzo-train``, in the form that ``torchrun`` starts."""

from training.cli import main

if __name__ == "__main__":
    main()
