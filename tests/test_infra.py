from pathlib import Path

import yaml

INFRA = Path(__file__).parents[1] / "infra"


def test_cluster_file_passes_rays_own_validator():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((INFRA / "ray-cluster.yaml").read_text()))
    validate_config(config)
    assert len(config["provider"]["worker_ips"]) == config["max_workers"]


def test_image_copies_only_what_is_there_and_all_packages():
    lines = (INFRA / "Containerfile").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]]
    assert all((INFRA.parent / source).exists() for source in copied)
    assert {"pipeline", "features", "models", "jobs", "src", "constraints.txt"} <= set(copied)
