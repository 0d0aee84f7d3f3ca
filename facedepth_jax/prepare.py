"""`python -m facedepth_jax.prepare`: see data/prepare.py."""

from facedepth_jax.data.prepare import main

if __name__ == "__main__":
    main()
