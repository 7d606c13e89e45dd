import pytest

from skipreel.jobs.runtime.video_id import video_id_of


@pytest.mark.parametrize(
    ("key", "video_id"),
    [
        ("few/0UNUJ.mp4", "0UNUJ"),
        ("s3://bucket/a/0UNUJ.MKV?endpoint_override=there/x.mp4", "0UNUJ"),
        ("/videos/what?.mp4", "what?"),
        ("v1.2.mp4", "v1.2"),
        ("0UNUJ", "0UNUJ"),
        ("fight/fi001", "fight/fi001"),
        ("v1.2", "v1.2"),
    ],
)
def test_the_id_of_a_file_is_its_name_and_any_other_key_is_one_already(key, video_id):
    assert video_id_of(key) == video_id
