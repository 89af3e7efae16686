"""``python -m rewardlm``."""

from rewardlm.cli.app import main

if __name__ == "__main__":
    main()
