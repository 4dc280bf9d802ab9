from vigor_client.schemas.scoring import ScoringOptions
from vigor_service.engine.sequences import EMPTY_SCORE, TokenSequence
from vigor_service.scoring.encoded import EncodedGroup, EncodedRequest
from vigor_service.scoring.group_progress import GroupProgress


async def test_groups_are_finished_once_each_with_the_last_of_their_scores() -> None:
    shared, own = TokenSequence((1,), (2,)), TokenSequence((1,), (3,))
    groups = [
        EncodedGroup(None, (shared, own, shared), (False, False, False)),
        EncodedGroup(None, (shared,), (False,)),
        EncodedGroup(None, (TokenSequence((1,), ()),), (False,)),
        EncodedGroup(None, (own,), (True,)),
    ]

    progress = GroupProgress(EncodedRequest(ScoringOptions(truncated="worst"), groups))
    for scores in ({}, {shared: EMPTY_SCORE}, {own: EMPTY_SCORE}):
        progress.add(scores)
    progress.close()
    assert [indices async for indices in progress.finished()] == [[2, 3], [1], [0]]
