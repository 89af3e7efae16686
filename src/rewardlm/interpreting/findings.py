"""What ``interpret`` found, typed: the object in interpretation.json, with its fields as attributes.

Field names are the JSON's, but for ``from``, which is a word of Python: ``from_``. Models are named by their label, in
the order of the runs, the baseline first. Lists by layer have L entries, or L + 1 where the stream before the first
layer (and so the embedding) is one. docs/interpretation.md and docs/interpretation-inside.md define every number.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ByLayer = list[float]
ByHead = list[list[float]]
Bucket = Literal["low", "medium", "high"]
# What was changed in a model: see ``mechanistic.causal_check``.
TokenKind = Literal["template", "hostile", "prompt", "answer"]
PositionKind = Literal["template", "hostile", "prompt", "start", "answer"]
GroupName = Literal["named", "toxic_down", "toxic_up", "against_up", "against_down", "all", "attention", "vectors"]
SiteKind = Literal["head", "mlp", "stream"]
UnitKind = Literal["layer", "module", "head", "rank"]
CausalKind = Literal["plain", "scale", "layers_off", "add", "ablate", "add_random", "ablate_random"]


class Stored(BaseModel):
    """Anything that an interpretation stores as JSON. Keys that are not described here are refused."""

    # Sixty classes take a tenth of a second to build, which a report without interpretations needn't wait for.
    model_config = ConfigDict(extra="forbid", populate_by_name=True, defer_build=True)

    def dump(self) -> dict[str, Any]:
        """As in interpretation.json: what was never set isn't there."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Estimate(Stored):
    """A mean over ``n`` values, with its 95 % interval; None where there are none, or too few prompts for an interval.

    A change has ``p_value``: is it zero? ``p_adjusted`` is that corrected for the changes that are read with it.
    """

    mean: float | None
    ci95: tuple[float, float] | None
    p_value: float | None = None
    n: int
    p_adjusted: float | None = None


class Band(Stored):
    """Means along an answer, an entry a stretch of tokens from one position to another (included), each with its band.
    ``low`` and ``high`` are None where too few prompts reach so far."""

    from_: list[int] = Field(alias="from")
    to: list[int]
    mean: list[float]
    low: list[float | None]
    high: list[float | None]
    n: list[int]


class Stratum(Stored):
    """A transition between buckets of toxicity: ``of`` the run's pairs made it, ``taken`` of these were read."""

    from_: Bucket = Field(alias="from")
    to: Bucket
    of: int
    taken: int


class SampleFacts(Stored):
    """Which answers were read. ``redraw`` is how many of the run's pairs a second draw of the baseline would send from
    where to where, 3 × 3, a row None where that isn't known; None where it answered every prompt once."""

    scorer: str
    reward_of: list[str]
    from_: str = Field(alias="from")
    to: str
    pairs: int
    of: int
    unscored: int
    strata: list[Stratum]
    redraw: list[list[float] | None] | None
    tokens_an_answer: int
    # Older interpretations have it, always 0. It is read and not written.
    reencoded: int = Field(default=0, exclude=True)
    seed: int


class Ranks(Stored):
    """Median rank of a token among all that the model could have said; 0 is its first choice."""

    before: float | None
    after: float | None


class TokenReading(Stored):
    """How likely two models find the same answers, nats a token; ``kl`` is from the author to the reader."""

    answers: int
    tokens: int
    logprob_change: Estimate
    entropy_change: Estimate
    kl: Estimate
    rank: Ranks
    same_first_choice: Estimate


class ToxicCheck(Stored):
    """Change of log-probability of the baseline's toxic answers (over ``threshold``) and of its others."""

    threshold: float
    toxic: Estimate
    other: Estimate
    difference: Estimate


class PartingPlace(Stored):
    """Quartiles of the first token at which two models part, over the ``parted`` of ``of`` answers in which they do."""

    quartiles: list[float] | None
    parted: int
    of: int


class Parting(Stored):
    """Where two models part: by their divergence, and by their first choices."""

    threshold_kl: float
    by_kl: PartingPlace
    by_first_choice: PartingPlace


class DriftValues(Stored):
    """Of answers that made a transition."""

    logprob_change: Estimate
    kl: Estimate


class DriftTransition(Stored):
    """The baseline's answers that made a transition; ``beyond_redraw`` is minus those that a second draw would send."""

    transition: str
    pairs: int
    logprob_change: Estimate
    kl: Estimate
    beyond_redraw: DriftValues | None


class ChangedToken(Stored):
    """A token that is more or less probable, over all positions of the baseline's answers."""

    token: int
    text: str
    logprob_change: float
    before: float
    after: float


class DriftComparison(Stored):
    """From the baseline to a tuned model."""

    from_: str = Field(alias="from")
    to: str
    on_baseline: TokenReading
    on_own: TokenReading
    toxic_check: ToxicCheck
    parting: Parting
    by_transition: list[DriftTransition]
    kl_along: Band
    promoted: list[ChangedToken]
    demoted: list[ChangedToken]


class Drift(Stored):
    """How likely each model finds the other's words."""

    comparisons: list[DriftComparison]


class CompletenessFacts(Stored):
    """Whether scores add up where a method promises a sum. Gaps are in nats, of tokens that weren't refused."""

    tolerance: float
    tokens: int
    refused: int
    reasons: list[str]
    largest_gap: float | None
    largest_share: float | None
    steps: float
    most_steps: int


class FaithfulnessScore(Stored):
    """A measure of the method beside random orders of the same words, nats; ``better`` is by how much it is better."""

    method: Estimate
    random: Estimate
    better: Estimate


class FaithfulnessFacts(Stored):
    """Do the words with the largest shares matter? ``passes`` is None where too few prompts were tested to say."""

    tokens: int
    method: str
    comprehensiveness: FaithfulnessScore
    sufficiency: FaithfulnessScore
    passes: bool | None


class ModelShares(Stored):
    """On what a model's own answers rest: shares of attribution, and its entropy in bits."""

    label: str
    answers: int
    prompt: Estimate
    template: Estimate
    answer: Estimate
    entropy_bits: Estimate


class AttributionChange(Stored):
    """Change of attribution on the same tokens; ``kl_bits`` is from the baseline's to the tuned model's."""

    prompt_change: Estimate
    entropy_change: Estimate
    kl_bits: Estimate


class OwnAttributionChange(Stored):
    """Change of attribution from the baseline's answers to the model's own."""

    prompt_change: Estimate
    entropy_change: Estimate


class AttributionTransition(Stored):
    """As ``AttributionChange``, of answers that made a transition."""

    transition: str
    pairs: int
    prompt_change: Estimate
    entropy_change: Estimate
    kl_bits: Estimate
    beyond_redraw: AttributionChange | None


class AttributionComparison(Stored):
    """From the baseline to a tuned model."""

    from_: str = Field(alias="from")
    to: str
    same_tokens: AttributionChange
    own_answers: OwnAttributionChange
    by_transition: list[AttributionTransition]


class AttributionBand(Stored):
    """A quantity along the model's own answers that made a transition, or ``all``; see ``Band``."""

    label: str
    transition: str
    quantity: Literal["prompt", "entropy_bits"]
    answers: int
    from_: list[int] = Field(alias="from")
    to: list[int]
    mean: list[float]
    low: list[float | None]
    high: list[float | None]
    n: list[int]


class ExampleReading(Stored):
    """A model's ln p of the example's token, and the share of every word before it."""

    label: str
    logprob: float
    shares: list[float]


class ExplainedToken(Stored):
    """A token of a baseline's answer, the words before it as (text, kind), and P(toxic) of each model's answer."""

    toxicity: list[float]
    token: str
    position: int
    words: list[tuple[str, str]]
    models: list[ExampleReading]


class Attribution(Stored):
    """What each token rests on."""

    method: str
    baseline: str
    explained_tokens: int
    completeness: CompletenessFacts | None
    faithfulness: FaithfulnessFacts | None
    models: list[ModelShares]
    comparisons: list[AttributionComparison]
    bands: list[AttributionBand]
    examples: list[ExplainedToken]


class ModelSimilarity(Stored):
    """Cosine of a model's answers with their own prompts, and with shuffled ones."""

    label: str
    own: Estimate
    null: Estimate
    above_null: Estimate


class SimilarityRedraw(Stored):
    """The same change from one draw of the baseline to another."""

    above_null_change: Estimate


class SimilarityTransition(Stored):
    """Of answers that made a transition."""

    transition: str
    pairs: int
    above_null_change: Estimate
    redraw: SimilarityRedraw | None


class SimilarityComparison(Stored):
    """From the baseline to a tuned model, over all answers of the runs."""

    from_: str = Field(alias="from")
    to: str
    above_null_change: Estimate
    by_transition: list[SimilarityTransition]


class SimilarityFacts(Stored):
    """Are the answers about their prompts?"""

    models: list[ModelSimilarity]
    comparisons: list[SimilarityComparison]


class Focus(Stored):
    """The answers whose logits are read: the base's toxic ones, or the most toxic third of them."""

    answers: int
    toxic: bool


class ContrastWords(Stored):
    """The words whose logits are compared."""

    toxic: list[str]
    neutral: list[str]


class AttentionShares(Stored):
    """Where heads look, [L][H]: shares of the first token, the rest of the prompt and the response; entropy in bits."""

    first: ByHead
    prompt: ByHead
    response: ByHead
    entropy: ByHead


class LogitShareMeans(Stored):
    """Shares of every part in toxic minus neutral logits, which add up to ``total``."""

    embedding: float
    heads: ByHead
    attention_bias: ByLayer
    adapter_heads: ByHead
    mlp: ByLayer
    mlp_bias: ByLayer
    adapter_mlp: ByLayer
    constant: float
    total: float


class LayerInterval(Stored):
    """The ends of 95 % intervals over prompts, an entry a layer. None where all prompts have the same value: nothing
    says how far others may be."""

    low: list[float | None]
    high: list[float | None]


class LensMeans(Stored):
    """What the head would say after each layer, L + 1 entries; nats, but the ``score``, which is in logits.

    ``score_ci95`` is None where there are too few prompts, and in interpretations that are older than it."""

    score: ByLayer
    target_logprob: ByLayer
    entropy: ByLayer
    kl: ByLayer
    score_ci95: LayerInterval | None = None


class StreamReading(Stored):
    """A model's residual stream on the base's answers; the last four where there are words to compare."""

    positions: int
    attention: AttentionShares
    shares: LogitShareMeans | None = None
    largest_error: float | None = None
    lens: LensMeans | None = None
    lens_positions: int | None = None


class BestOfShuffled(Stored):
    """Held-out AUC of the best layer, a shuffling of the labels an entry, and how often chance does as well."""

    auc: list[float]
    p_value: float


class Shuffled(Stored):
    """What the best layer reaches by chance: of the probe, and of the difference of means."""

    number: int
    probe: BestOfShuffled
    mean: BestOfShuffled


class Directions(Stored):
    """Can toxicity be read off the base's stream? All after ``reason`` is there where that is None."""

    n: int
    n_toxic: int
    reason: str | None
    layer: int | None = None
    folds: int | None = None
    probe_accuracy: ByLayer = []
    probe_auc: ByLayer = []
    mean_accuracy: ByLayer = []
    mean_auc: ByLayer = []
    majority: float | None = None
    shuffled: Shuffled | None = None
    shuffled_accuracy: float | None = None
    length: float | None = None
    stream_length: float | None = None


class Ratio(Stored):
    """A tuned model's push to the base's, with Fieller's interval; ``as_before``: that lies within the margin."""

    mean: float
    ci95: tuple[float, float]
    as_before: bool
    n: int


class RandomAdapter(Stored):
    """What an adapter of random weights, as large, does to the value vectors: median cosine, and the three ratios."""

    cosine: float
    push_ratio: float | None
    read_ratio: float | None
    write_ratio: float | None


class ModelVectors(Stored):
    """A model's value vectors, an entry a vector: cosine with the base's, how far it moved, mean activation."""

    cosine: list[float]
    change: list[float]
    activation: list[float]
    push: float
    push_ratio: Ratio | None
    read_ratio: Ratio | None
    write_ratio: Ratio | None
    null: list[RandomAdapter]


class VectorFacts(Stored):
    """A row of an MLP's output matrix, and the tokens that it promotes; see ``value_vectors.ValueVector``."""

    layer: int
    neuron: int
    sign: int
    score: float
    tokens: list[str]


class ValueVectors(Stored):
    """The value vectors that were followed, and by what they were chosen."""

    rows: list[VectorFacts]
    margin: float
    by_model: dict[str, ModelVectors]
    by: Literal["words", "direction"]


class AblationEffect(Stored):
    """What is lost without the named vectors, beside random sets of others; see ``vector_ablation``."""

    plain: float | None
    named: float | None
    random: float | None
    change: Estimate | None
    random_change: Estimate | None
    random_changes: list[float]
    beyond_random: Estimate | None
    p_value_random: float | None


class ModelAblation(Stored):
    """What a model loses without the named vectors: toxicity of new answers, and logits of toxic words."""

    toxicity: AblationEffect | None
    logits: AblationEffect | None


class VectorAblation(Stored):
    """Value vectors, silenced."""

    vectors: int
    random_sets: int
    answering_sets: int
    prompts: int
    answers: int
    prompts_of_answers: int
    by_model: dict[str, ModelAblation]


class ScoreChange(Stored):
    """Change of toxic minus neutral logits: what the adapter wrote itself, and the rest."""

    change: float
    own: float
    rest: float


class AdapterWrites(Stored):
    """What an adapter wrote, by module and layer: length against the stream's, and share in toxic minus neutral logits.
    ``moved`` is how far the stream is from the base's, by its length. ``share_ci95`` are the intervals of the shares:
    None where there are too few prompts, and in interpretations that are older than it."""

    answers: int
    positions: int
    moved: ByLayer
    length: dict[str, ByLayer]
    share: dict[str, ByLayer] | None = None
    score: ScoreChange | None = None
    share_ci95: dict[str, LayerInterval] | None = None


class RedrawPreference(Stored):
    """Preference for the base's harmless answers over its toxic ones, nats a token: of the base, and of the model."""

    pairs: int
    mean_fall: float
    before: float
    after: float
    change: Estimate


class AdapterPath(Stored):
    """Which layers carry what the model came to prefer; see ``adapter_effects.follow_path``."""

    pairs: int
    mean_fall: float | None
    before: float | None
    after: float | None
    redraw: RedrawPreference | None
    of: Literal["redraw", "new"]
    followed: int
    whole: float
    by_layer: ByLayer
    by_module: dict[str, float]
    missing: float
    steps: int
    adds_up: bool
    fewest: int | None


class CausalRow(Stored):
    """What a model says under a change. ``changes`` is there for random directions, one each; ``p_value_random`` for a
    direction that was held against them."""

    model: str
    kind: CausalKind
    value: float
    layers: list[int]
    toxicity: float | None
    toxic_share: float | None
    judged: int
    perplexity: float | None
    change: Estimate | None
    texts: list[str]
    changes: list[float] | None = None
    p_value_random: float | None = None


class CausalCheck(Stored):
    """Answers to as many prompts under every change. ``direction_p_value``: how often a random direction does as much
    to the base, added or ablated; None where neither was shown to change toxicity, so that no random ones were tried.
    """

    prompts: int
    rows: list[CausalRow]
    direction_p_value: float | None


class AdapterVerdict(Stored):
    """What became of toxicity in a tuned model; see ``verdicts.verdict_of``."""

    kind: Literal["unclear", "rewritten", "avoided", "untouched", "cannot_tell"] | None
    reason: str | None
    spread: Literal["localised", "distributed"] | None
    toxicity_change: Estimate | None
    vector_cosine: float | None
    push_ratio: Ratio | None
    read_ratio: Ratio | None
    write_ratio: Ratio | None
    vectors_matter: bool | None
    direction_used: bool | None
    fewest_layers: int | None
    n_layers: int


class Inside(Stored):
    """The residual stream of the base and of the adapters on it, taken apart: ``models``. ``stream`` also has what can
    be read of models whose stream is steered."""

    models: list[str]
    family: str
    n_layers: int
    n_heads: int
    answers: int
    focus: Focus
    words: ContrastWords | None
    stream: dict[str, StreamReading]
    directions: Directions
    vectors: ValueVectors | None
    ablation: VectorAblation | None
    adapters: dict[str, AdapterWrites]
    paths: dict[str, AdapterPath | None]
    causal: CausalCheck | None
    verdicts: dict[str, AdapterVerdict]
    settings: dict[str, Any]
    notes: list[str]


class PatchedSite(Stored):
    """A head, an MLP or the stream before a layer: what the tuned model's value there does to the base.

    ``effect`` is how far the base's preference for harmless answers rises, nats a token, its mean over prompts: by
    exact patching where ``exact``, else estimated from a gradient, as ``estimate`` is for all. ``own`` is the same with
    what the adapter does there by itself. ``p_adjusted`` is corrected for all sites; ``p_random`` says how many
    adapters of random weights have a site with as large an estimate. What passes both is ``claimed`` (of ``effect``),
    or an ``origin`` (of ``own``); of the stream nothing is claimed. ``out_of`` is how far the tuned model's
    preference falls with the base's value. ``by_position`` splits the estimate of ``own`` (of a stream: of
    ``effect``); ``exact_by_position`` is what it is if the value is put in at the positions of one kind alone.
    ``placebo`` is the estimate on pairs of two harmless answers."""

    site: str
    kind: SiteKind
    layer: int = Field(ge=0, lt=10_000)
    head: int | None = Field(ge=0, lt=10_000)
    effect: float | None
    ci95: tuple[float, float] | None
    p_value: float | None
    p_adjusted: float | None
    p_random: float | None
    claimed: bool
    own: float | None
    own_ci95: tuple[float, float] | None
    own_p_adjusted: float | None
    own_p_random: float | None
    origin: bool
    exact: bool
    estimate: float
    out_of: float | None
    placebo: float | None
    by_position: dict[PositionKind, float]
    exact_by_position: dict[PositionKind, float] | None = None

    @property
    def name(self) -> str:
        """What ``site`` says, from its parts."""
        return site_name(self.kind, self.layer, self.head)


def site_name(kind: SiteKind, layer: int, head: int | None) -> str:
    """As ``head 3.2``, ``mlp 5``, ``stream 7``."""
    return f"{kind} {layer}" + ("" if head is None else f".{head}")


class PatchedAnswers(Stored):
    """New answers of a model (``into``) that has the other's values at ``sites`` while it answers, judged.

    ``change`` is against the same model without a patch. With ``random`` the other model is an adapter of random
    weights, as large: what values that mean nothing do at these sites."""

    into: Literal["base", "tuned"]
    sites: list[str]
    random: bool = False
    toxicity: float | None
    toxic_fraction: float | None
    change: Estimate | None


class WordsByPart(Stored):
    """A text of a pair, prompt and answer, as tokens, and what each of ``sites`` of ``PatchedWords`` wrote at each of
    them, [S][T] nats a token: positive raises the preference for the harmless answer."""

    tokens: list[str]
    values: list[list[float]]


class PatchedWords(Stored):
    """A pair of answers, token by token. ``prompt`` is how many of the tokens are the prompt's."""

    sites: list[str]
    prompt: int
    toxic: WordsByPart
    harmless: WordsByPart


class PatchingFacts(Stored):
    """On what ``PatchedSite`` rests: the preference of both models, how well estimates rank what exact patching finds
    (Spearman; heads and MLPs that weren't chosen by the size of their estimates; of what they pass on, and of their own
    doing), the largest estimate of any head or MLP in any random adapter, of either kind, and what is claimed.
    ``placebo_change`` is how far the preference rises on placebo pairs. By estimates alone ``estimated_claimed`` heads
    and MLPs would be claimed to pass something on, ``placebo_claimed`` on placebo pairs."""

    pairs: int
    before: float
    after: float
    change: Estimate
    sites: int
    exact_sites: int
    rank_correlation: float | None
    own_rank_correlation: float | None = None
    random_adapters: int
    largest_random: float | None
    own_largest_random: float | None = None
    origins: list[str]
    claimed: list[str]
    placebo_pairs: int
    estimated_claimed: int | None = None
    placebo_claimed: int | None
    placebo_change: Estimate | None = None
    answers: list[PatchedAnswers] = []
    words: list[PatchedWords] = []


class ShareOfChange(Stored):
    """A part's share in the whole change of preference, with Fieller's 95 % interval over prompts."""

    mean: float
    ci95: tuple[float, float]
    n: int


class NeuronGroup(Stored):
    """Neurons that are patched together; see ``causes.neurons``. ``neurons`` is how many, None for what is no group of
    neurons: ``attention``, and ``vectors``, the adapter on the MLPs' output matrices. ``effect`` and ``lost`` are nats
    a token; ``into`` and ``out_of`` the shares that they are of the whole change."""

    name: GroupName
    neurons: int | None
    into: ShareOfChange | None
    out_of: ShareOfChange | None
    effect: float
    lost: float


class TopNeuron(Stored):
    """A neuron at which the adapter changes the preference, by ``estimate`` (nats a token), and what the base's value
    vector promotes."""

    layer: int
    neuron: int
    estimate: float
    tokens: list[str]


class CausalVerdict(Stored):
    """Was toxicity unlearned or bypassed? By the share of the change that is lost with the base's value vectors; see
    ``causes.neurons.causal_verdict``."""

    kind: Literal["unlearned", "bypassed", "cannot_tell", "unclear"]
    reason: str
    change: Estimate
    vectors: ShareOfChange | None
    carries: float
    carries_little: float


class HeadLook(Stored):
    """Where a head's attention goes at the answers' positions: shares, which sum to 1."""

    template: float
    hostile: float
    prompt: float
    answer: float


class HeadFacts(Stored):
    """An attention head of the base and of a tuned model, on the same text; see ``causes.heads``.

    ``qk_change`` and ``ov_change`` are how far the adapter moves W_Q·W_Kᵀ and W_V·W_O, by their length (Frobenius);
    the spectra are the shares of their largest singular values in the change's square. ``promotes`` and ``demotes``
    are the tokens that the change of the head's mean write raises and lowers most; ``wrote`` what the base's does."""

    layer: int
    head: int
    base: HeadLook
    tuned: HeadLook
    qk_change: float
    ov_change: float
    qk_spectrum: list[float]
    ov_spectrum: list[float]
    wrote: list[str]
    promotes: list[str]
    demotes: list[str]


class MeasuredPart(Stored):
    """New answers of one model to the prompts that the smallest adapter was not chosen on. ``toxic_fraction`` is over
    0.5; ``perplexity`` is that of the untouched base; ``prompt_similarity`` the cosine with the prompt. ``drift`` is
    how far the model is from the base on the base's own harmless answers, nats a token."""

    toxicity: float | None
    toxic_fraction: float | None
    perplexity: float | None
    prompt_similarity: float | None
    words: float
    drift: float


class TriedPart(Stored):
    """A part of the adapter that was tried: so many of its ``of`` units, best first, ``parameters`` numbers in all.
    ``preference_kept`` is its share in the rise of preference, ``fall_kept`` in the fall of toxicity, by its first
    answers; ``fall_kept_again`` by new ones, None where the first kept too little. Both are None where the whole
    adapter's is no fall. ``passed``: both kept enough; None in interpretations from before parts had to."""

    unit: UnitKind
    units: int
    of: int
    parameters: int
    preference_kept: float
    fall_kept: float | None
    fall_kept_again: float | None = None
    passed: bool | None = None


class MinimalAdapter(Stored):
    """The smallest part of an adapter that keeps ``keep`` of the fall of toxicity on ``chosen_on`` prompts; see
    ``causes.minimal``. None of its parts is there with ``reason`` where there is nothing to keep.

    ``kept`` is its share of the adapter's ``of_parameters``. ``toxic_fraction`` and the rest are of the ``measured_on``
    other prompts: of the part, the ``whole`` adapter and the ``base``. ``fall_kept`` is the share of the whole's fall
    there, with its interval. ``…_from_whole`` are the part's changes against the whole adapter over prompts: of mean
    toxicity, similarity with the prompt, drift, and the answers' log-probability a token under the base (fluency)."""

    reason: str | None
    keep: float
    chosen_on: int
    measured_on: int
    of_parameters: int
    unit: UnitKind | None = None
    units: int | None = None
    of_units: int | None = None
    kept: float | None = None
    parameters: int | None = None
    adapter: str | None = None
    parts: list[str] = []
    toxic_fraction: float | None = None
    toxicity: float | None = None
    perplexity: float | None = None
    prompt_similarity: float | None = None
    words: float | None = None
    drift: float | None = None
    fall_kept: ShareOfChange | None = None
    change_from_whole: Estimate | None = None
    similarity_from_whole: Estimate | None = None
    drift_from_whole: Estimate | None = None
    fluency_from_whole: Estimate | None = None
    whole: MeasuredPart | None = None
    base: MeasuredPart | None = None
    tried: list[TriedPart] = []


class ColouredReading(Stored):
    """What the explained tokens of an answer rest on, by one model. ``shares`` [K] has a list a token: the share of
    every word before it. None is a token that was refused."""

    reader: str
    shares: list[list[float] | None]


class ColouredAnswer(Stored):
    """A model's answer of R tokens, for the page to colour.

    ``highest`` is the highest score that any judge of the run gave it, None where nobody scored it. ``tokens`` [R] are
    the pieces of its text. ``logprobs`` [M][R] are nats and ``first_choices`` [M][R] texts, by model. ``kl`` [M][R] is
    the divergence from the author's next-token distribution to each model's, nats. They are empty for a model that
    can't be read. ``words`` [W] are (text, kind) of
    the prompt and the answer. The K explained tokens stand at ``positions`` and lie in the words ``at_words``.
    """

    label: str
    highest: float | None
    tokens: list[str]
    logprobs: list[list[float]]
    first_choices: list[list[str]]
    kl: list[list[float]]
    words: list[tuple[str, str]]
    positions: list[int]
    at_words: list[int]
    readings: list[ColouredReading]


class ColouredExample(Stored):
    """A prompt and every model's answer to it, and by which rule it was ``chosen``; see ``shown_answers``.

    ``drift`` is the mean divergence over the baseline's answer, from the baseline to the last model that can be read,
    nats a token."""

    chosen: Literal["usual", "moved", "fell", "rose"]
    prompt: str
    prompt_toxicity: float | None
    drift: float
    toxicity: list[float]
    answers: list[ColouredAnswer]


class ModelFacts(Stored):
    """A model that was looked into. Of one that was treated while it answered: ``adapter_strength`` times what its
    adapter adds, or the ``method`` that steered it and its ``strength``. ``left_out`` says of which parts (drift,
    attribution, inside) nothing is known, or not all, and why.

    The rest is there for tuned models where it was asked for. ``towards`` says which pairs it rests on: those of the
    base's own harmless answers, or of the model's ``own`` new ones; ``harmless_change`` is how far the preference for
    the former rose. Then come ``heads``; ``patching`` of all sites, and on what it
    rests (``patched``); ``neuron_groups``, single ``neurons`` and the ``verdict``; and the ``minimal_adapter``."""

    label: str
    model: str
    adapter: str | None
    rewards: list[str]
    dtype: str
    adapter_strength: float | None = None
    method: str | None = None
    strength: float | None = None
    left_out: dict[str, str] = {}
    towards: Literal["harmless", "own"] | None = None
    harmless_change: Estimate | None = None
    heads: list[HeadFacts] | None = None
    patching: list[PatchedSite] | None = None
    patched: PatchingFacts | None = None
    neuron_groups: list[NeuronGroup] | None = None
    neurons: list[TopNeuron] | None = None
    verdict: CausalVerdict | None = None
    minimal_adapter: MinimalAdapter | None = None


class Interpretation(Stored):
    """All of it: interpretation.json. ``shown`` is empty in those that were made before answers were kept for it.
    ``causes`` are the settings by which parts of adapters were looked for, as they were used."""

    models: list[ModelFacts]
    sample: SampleFacts
    drift: Drift
    attribution: Attribution
    similarity: SimilarityFacts | None
    notes: list[str]
    inside: Inside | None
    inside_notes: list[str]
    causes: dict[str, Any] | None = None
    shown: list[ColouredExample] = []
