"""What a repository on the Hub carries: exactly the files of this folder.

In reading order:

1.  `modeling_pfberxit`: the classifier and the headless model; what a call takes, and its output.
2.  `loop`: enter a layer, run it, run its exits, apply the criterion, remove the rows that exit.
3.  `rows`: all tensors that belong to the rows of a batch, and the record of a call.
4.  `exits`: divergences (eq. 6 to 8), the evidence exits emit, a rule's memory of it, and the modules.
5.  `heads`: what a head is made of: ours, and those of `transformers` classifiers.
6.  `scores`: the functions that rules are made of.
7.  `criteria`: eq. 5, its variants and relatives, as a registry of rules, and what fits them.
8.  `steps`: one step of a rule: score, decide, answer, remember; labels with a tau of their own.
9.  `exit_policy`: criterion, tau, t, m ... of one call; published methods as values.
10. `adapters`: eq. 1 with its four sub-learners, late prompts, tokens that leave on their own.
11. `layers`: an encoder's layer with adapters beside its two halves.
12. `deberta`: DeBERTa's layer, whose scores depend on how far apart two positions are.
13. `encoder_layer`: what every stock layer does, in four steps, and the context it attends in.
14. `rotary`: the families that turn queries and keys by their positions.
15. `families`: encoder families, one record each.
16. `backbones`: what the model needs of its encoder, whatever its family.
17. `streams`: `predict`, for more rows than fit a batch.
18. `losses`: a loss for each exit, their sum, and what must learn by it.
19. `strategies`: which exits learn at a step, with which weights; PEFT.
20. `configuration_pfberxit`: every knob, its default and its check.
21. `checkpoints`: the parts of a model, loading and saving.
22. `persistence`: files of checkpoints and encoders, hashes.
23. `certified`: certificates, left behind where the weights are others.
24. `identity`: encoders compared by their bytes, models by the values they were built from.
25. `load_options`: options of a load, kinds of checkpoints.
26. `validation`: checks of single values, tracers, the fields of a policy.
"""
