"""Training recipes; installed as ``uvos_jax.configs``.

``uvos train --config default`` reads ``default.py`` from here, ``default:fold0`` its preset ``fold0``.
"""
