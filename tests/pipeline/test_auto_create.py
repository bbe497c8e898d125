"""A broker that creates each topic that is asked for, as Kafka does by default."""

from pathlib import Path

import pytest
from pipeline import new_pipeline

from servers import servers


@pytest.mark.long
def test_reading_a_misspelt_topic_does_not_create_it_and_sending_to_it_does(ready: None, tmp_path: Path) -> None:
    """Servers of its own, and 15 seconds until --until-empty gives up."""
    properties = {"auto.create.topics.enable": "true"}
    with servers(properties=properties) as running, new_pipeline(running, tmp_path) as pipeline:
        pipeline.topic += "-misspelt"
        scripts = [pipeline.consumer("--until-empty"), pipeline.consumer("--check"), pipeline.producer("--check")]
        assert scripts[0].says(f"WARNING Kafka: the topic {pipeline.topic} is missing")
        assert [script.ends() for script in scripts] == [1, 1, 1]
        assert not pipeline.is_there()
        assert pipeline.producer("--flush-interval", "2").ends() == 0
        assert pipeline.is_there()
