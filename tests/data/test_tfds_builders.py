"""Every builder passes the builder test of TFDS."""

import tempfile
from pathlib import Path
from unittest import mock

import pytest

from tests.helpers import archives

pytest.importorskip("tensorflow")
pytest.importorskip("dill")  # required by tfds.testing
tfds = pytest.importorskip("tensorflow_datasets")

from uvos_jax.data.storage import tfds_builders as builders  # noqa: E402
from uvos_jax.data.storage.convert import DATASETS  # noqa: E402

ARCHIVES = tuple(name for name in DATASETS if name != "synthetic")


class _OnArchive:
    """Runs TFDS's builder test on a small archive.

    The test reads with tf.data, which TFDS does not support for array_record, so it writes TFRecords. The tests in
    test_convert.py read array_record.
    """

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.DATASET_CLASS = builders.BUILDERS[cls.NAME]
        cls.SPLITS = getattr(archives, cls.NAME)(Path(cls.temporary.name))
        cls.EXAMPLE_DIR = cls.temporary.name
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.temporary.cleanup()

    def _make_builder(self, config=None):
        return self.DATASET_CLASS(data_dir=self.tmp_dir, config=config, file_format="tfrecord")


for _name in ARCHIVES:
    _class = type(f"Test{builders.BUILDERS[_name].__name__}", (_OnArchive, tfds.testing.DatasetBuilderTestCase),
                  {"NAME": _name, "__module__": __name__})
    globals()[_class.__name__] = _class
del _class


class TestUvosSynthetic(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = builders.UvosSynthetic
    SPLITS = {"train": 4, "val": 2}  # noqa: RUF012
    EXAMPLE_DIR = str(Path(__file__).parent)  # required by TFDS, but not read

    @classmethod
    def setUpClass(cls):
        clips = {"train": (0, 2), "val": (9, 1)}
        cls.patch = mock.patch.multiple(cls.DATASET_CLASS, CLIPS=clips, LENGTH=2, SIZE=(48, 64))
        cls.patch.start()
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.patch.stop()

    def _make_builder(self, config=None):
        return self.DATASET_CLASS(data_dir=self.tmp_dir, config=config, file_format="tfrecord")
