"""What training changed inside a model: measured runs in, an interpretation out.

The flow, each line a file that says how:

    interpretation              all of it, from top to bottom; findings is the result, typed
    answers, models             a sample of stored answers, and each run's base with its adapter
    records                     what every answer gave, appended as it came: drift, attribution, faithfulness
    shown_answers               the few answers that the page colours word by word
    drift_summary, attribution_summary, similarity
                                records to estimates, weighted back to the run (stratified, intervals)
    mechanistic/                the residual stream, directions, value vectors, and what answers say under interventions
"""
