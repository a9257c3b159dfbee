"""`python run.py strategy=finetune alpha=0.5`: one question to one answer; `-m` makes it a comparison."""

from tlexp.cli import main

if __name__ == "__main__":
    main()
