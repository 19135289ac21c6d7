"""Mistakes in Python: ``(code, error, parts of its message)`` by topic."""

RECIPES = [
    ('jn.Stage("train", jn.identity)', TypeError, "stage 'train': transform", "call it, identity()"),
    ('jn.Stage("w4", jn.quantize)', TypeError, "the function quantize itself", "quantize(bits=...)"),
    ('jn.Stage("cut", jn.cut_units)', TypeError, "call it, cut_units()"),
    ('jn.Stage("w4", "quantize")', TypeError, "transform is 'quantize'", "pass a Transform"),
    ('jn.Stage("w4", jn.arithmetic("w4a8"))', TypeError, "transform is a Rule", "pass a Transform"),
    ('jn.Stage(w4, "w4")', TypeError, "name is a Transform", "Stage('w4', quantize(4), epochs=1)"),
    ('jn.Stage("w4", w4, rule="w4a8")', TypeError, "rule is 'w4a8'", "arithmetic('w4a8')"),
    ('jn.Stage("w4", w4, rule=jn.arithmetic)', TypeError, "call it, arithmetic(name=...)"),
    ('jn.Stage("w4", w4, epochs=1.5)', ValueError, "epochs=1.5", "allowed are the whole numbers"),
    ('jn.Stage("w4", w4, learning_rate=-1)', ValueError, "learning_rate=-1", "a positive number"),
    ('jn.Stage("w4", w4, optimizer="adam")', TypeError, "optimizer='adam'", "optax.sgd(0.1)"),
    ('jn.Stage("w4", w4, thaw="prune")', TypeError, "thaw='prune'", "pass a tuple"),
    ('jn.Stage("w4", w4, distill=True)', TypeError, "distill is True", "Distill(temperature=4.0"),
    ('compress([jn.Stage("tanh", jnp.tanh)])', TypeError, "transform(0) returned an array", "pass a Transform"),
    ('compress([jn.Stage("half", lambda p: p["hidden"])])', TypeError, "not subscriptable", "pass a Transform"),
    ("compress(w4)", TypeError, "recipe is a Transform", "pass a list of stages"),
    ("compress([w4])", TypeError, "its entry 0 a Transform", "[Stage(name, transform), ...]"),
    ("compress([])", ValueError, "no stage", "pass at least one"),
    ('compress([jn.Stage("a", w4), jn.Stage("a", w4)])', ValueError, "two stages are called 'a'", "rename one"),
    ('compress([jn.Stage("a", w4, thaw=("b",))])', ValueError, "thaw='b'", "there is none: leave thaw out"),
    (
        'compress([jn.Stage("p", jn.prune(sparsity=jn.cubic(0.9, end=100)), epochs=1)])',
        ValueError, "ends at 0.9", "let the schedule end earlier",
    ),
    ('compress([jn.Stage("w4", w4), jn.Stage("p", jn.prune(sparsity=0.5))])', ValueError, "head/kernel", "packs last"),
    ('compress([jn.Stage("w4", w4)], seed="zero")', TypeError, "seed is 'zero'", "pass a whole number"),
    ('compress([jn.Stage("w4", w4)], export=["cuda"])', ValueError, "'cuda'", "'cpu', 'gpu', 'tpu'"),
    (
        'compress([jn.Stage("t", jn.identity(), epochs=2, learning_rate=1e30)])',
        FloatingPointError, "the loss is nan", "lower learning_rate=1e+30",
    ),
    ("jn.Distill(temperature=0)", ValueError, "temperature=0", "a positive number, e.g. 4.0"),
]  # fmt: skip

TRANSFORMS = [
    ("jn.chain(jn.quantize(4), jn.identity)", TypeError, "member 1", "call it, identity()"),
    ("jn.chain([jn.quantize(4)])", TypeError, "member 0 is a list", "pass a Transform"),
    ("jn.chain(jn.quantize(4), lambda params: params)", TypeError, "the function <lambda>", "pass a Transform"),
    ('jn.where("**/kernel", jn.prune)', TypeError, "for '**/kernel'", "call it, prune()"),
    (
        'jn.where(jn.quantize(4), "**/kernel")',
        TypeError, "the pattern is a Transform", "where('**/kernel', quantize(4))",
    ),
    ('jn.where(["a", "b"], jn.quantize(4))', TypeError, "the pattern is a list", "use by_path"),
    ('jn.where("**", jn.cut_units(share=0.5))', TypeError, "is a Pass", "a pass to a Stage of its own"),
    ('jn.by_path({"**": jn.quantize(4)})', TypeError, "cases is a dict", "pass a list of pairs"),
    ("jn.by_path([jn.quantize(4)])", TypeError, "a case is a Transform", "pass a list of pairs"),
    ("jn.every(w4, 2)", TypeError, "every(n, method, last=None)", "pass a whole number of steps"),
    ("jn.between(5, 2, w4)", ValueError, "stop=2", "allowed are whole numbers of steps from 5"),
    ("jn.later(-1, w4)", ValueError, "steps=-1", "allowed are whole numbers of steps from 0"),
    ("jn.frozen(jn.quantize)", TypeError, "call it, quantize(bits=...)"),
    ("jn.quantize(9)", ValueError, "bits=9", "allowed are the whole numbers 1 to 8"),
    ('jn.quantize("int8")', ValueError, "bits='int8'", "allowed are the whole numbers 1 to 8"),
    ("jn.quantize(4, group=2.0)", ValueError, "group=2.0", "allowed are whole numbers from 1"),
    ("jn.quantize(4, group=3).init(variables, info)", ValueError, "head/kernel: axis 0 has 16", "pass group=-1"),
    ('jn.quantize(4, ste="round")', ValueError, "ste='round'", "allowed are 'clip', 'pass' and 'none'"),
    ('jn.quantize(4, rounding="stochastic")', ValueError, "key=None", "key=jax.random.key(0)"),
    ('jn.quantize(4, rounding="stochastic", key="a")', TypeError, "key is 'a'", "jax.random.key(0)"),
    ("jn.prune(0.9)", TypeError, "criterion is 0.9", "pass the function itself"),
    ("jn.prune(sparsity=90)", ValueError, "sparsity=90", "for 90 % pass sparsity=0.9"),
    ('jn.prune(sparsity="90%")', TypeError, "sparsity='90%'", "pass one number"),
    ("jn.prune()", ValueError, "sparsity=None, threshold=None", "give one of them"),
    ("jn.prune(lambda w: abs(w), sparsity=0.5)", TypeError, "criterion", "(weight, gradient or None, known)"),
    (
        "jn.prune(lambda w, g, known: w.sum(), sparsity=0.5).init(variables, info)",
        ValueError, "head/kernel: the criterion gives", "must give each weight a score",
    ),
    ("jn.clip(1, -1)", ValueError, "lo=1, hi=-1", "e.g. clip(-1.0, 1.0)"),
    ('jn.clip("a", 1)', TypeError, "lo is 'a'", "pass a number"),
    ("jn.cubic(90, end=100)", ValueError, "final=90", "a share of zeros, 0 to 1"),
    ("w4.view(variables, None)", TypeError, "state is None", "pass a State: method.init(variables, info)"),
    ("w4.view(state, variables)", TypeError, "state is a dict", "pass a State"),
    ("jn.chain(w4, w4).view(variables, state)", ValueError, "1 part", "pass the state that this very method's init"),
    ('w4.view(variables["hidden"], state)', ValueError, "params lacks: head/kernel", "pass the whole pytree"),
    ("w4.init(variables, x)", TypeError, "info is an array float32[4, 8]", "pass a ModelInfo: inspect("),
    ("w4.init({})", ValueError, "there is none to match", "pass the whole tree"),
]  # fmt: skip

PATTERNS = [
    (f'jn.where("{pattern}", jn.quantize(4)).init(variables, info)', ValueError, "globs", hint)
    for pattern, hint in {
        ".*kernel": "did you mean '**/*kernel'?",
        "^hidden/": "did you mean 'hidden/**'?",
        "hidden.kernel": "did you mean 'hidden/kernel'?",
        r"params\\.dense": "nearest:",
        "(hidden|head)/kernel": "by_path([('hidden/kernel', ...), ('head/kernel', ...)])",
        "kernel": "did you mean '**/kernel'?",
        "['hidden']['kernel']": "did you mean 'hidden/kernel'?",
        "**/kernle": "nearest: head/kernel, hidden/kernel",
    }.items()
]

NETWORKS = [
    ("apply(stored, x)", TypeError, "a QTensor of shape (8, 16) is no array", "Network(apply, variables)", "rewrite"),
    ('stored["hidden"]["kernel"][0]', TypeError, "is no array", "rewrite(apply)", "densify(variables)"),
    ('jnp.dot(x, stored["hidden"]["kernel"])', TypeError, "is no array", "rewrite(apply)"),
    ('stored["hidden"]["kernel"].T', AttributeError, "T: a QTensor", "rewrite(apply)"),
    (
        "jn.linen(model, params).apply(jn.quantize(8).pack(params, jn.quantize(8).init(params)), x)",
        TypeError, "is no array", "rewrite",
    ),
    ("jn.Network(model, params)", TypeError, "apply is a Dense", "jaxopt_nn.linen(model, variables)"),
    ("jn.Network(variables, apply)", TypeError, "apply is a dict", "pass a pure function (variables, *inputs) first"),
    ('jn.Network(apply, stored, rules="w4a8")', TypeError, "rules is 'w4a8'", "arithmetic('w4a8')"),
    (
        'jn.Network(apply, stored8, rules=jn.arithmetic("w4a8"))(x)',
        UserWarning, "take none of 2", "pass a rule of their width",
    ),
    (
        'jn.Network(apply, stored, rules=jn.static_ranges("w4a8"))(x)',
        ValueError, "hidden/kernel", "calibrated(network, batches)",
    ),
    ("net()", ValueError, "apply fails on inputs none", "called as apply(variables, *inputs)"),
    ("net(x[:, :5])", ValueError, "apply fails on inputs float32[4, 5]", "called as apply(variables, *inputs)"),
    ("net(x.tolist())", ValueError, "28 more", "pass arrays"),
    ('net("a cat")', TypeError, "0 is 'a cat'", "pass an array of numbers"),
    ("jn.inspect(net, x)", TypeError, "apply is a Network", "net.apply, net.variables"),
    ("jn.inspect(apply, x, variables)", ValueError, "apply fails on inputs", "called as apply(variables, *inputs)"),
    ("jn.inspect(model, params, x)", TypeError, "apply is a Dense", "jaxopt_nn.linen(model, variables)"),
    ("jn.inspect(lambda v, x: apply(variables, x), variables, x)", ValueError, "closes over 192 numbers", "pass it in"),
    ("jn.rewrite(apply, jn.arithmetic)", TypeError, "call it, arithmetic(name=...)"),
    ('jn.rewrite(apply, [jn.arithmetic("w8a8")])', TypeError, "an entry is a Rule", "a list of pairs"),
    ('jn.rewrite(apply, {".*kernel": jn.arithmetic("w8a8")})(stored, x)', ValueError, "did you mean '**/*kernel'?"),
    ("jn.capture(apply, jn.moments)", TypeError, "call it, moments()"),
    ('jn.arithmetic("int8")', ValueError, "arithmetic('int8')", "allowed are w1 to w8"),
    ('jn.moving_ranges("w4a8", decay=2)', ValueError, "decay=2", "allowed are numbers from 0 to below 1"),
    ("jn.linen(params, model)", TypeError, "model is a dict", "pass an instance of a Linen module first"),
    ("jn.linen(nn.Dense, params)", TypeError, "the class Dense", "pass an instance"),
    ('jn.linen(model, params["params"])', ValueError, "none called 'params'", "pass what model.init returned"),
    ('jn.linen(model, params, method="encode")', ValueError, "method='encode'", "use "),
    ("jn.nnx(model)", TypeError, "model is a Dense", "linen()"),
    (
        "jn.nnx(nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0))))",
        TypeError, "model is a State", "pass an instance of an NNX module",
    ),
    ("jn.prepare(stored, 'cuda')", ValueError, "platform='cuda'", "allowed are 'cpu', 'gpu', 'tpu'"),
]  # fmt: skip

DATA = [
    ("compress([jn.Stage('w4', w4)], network=apply)", TypeError, "network is the function apply", "pass a Network"),
    ("compress([jn.Stage('w4', w4)], task=(images, labels))", TypeError, "task is a tuple", "pass a Task"),
    (
        "compress([jn.Stage('w4', w4)], network=jn.Network(apply, stored))",
        ValueError, "head/kernel: is a QTensor", "densify",
    ),
    (
        "compress([jn.Stage('w4', w4)], network=jn.Network(apply, {}))",
        ValueError, "holds no array", "pass the whole pytree",
    ),
    (
        "compress([jn.Stage('w4', w4)], network=net.replace(variables=jax.tree.map(lambda w: w.astype(jnp.int32), variables)))",
        ValueError, "head/bias: int32", "nothing to train or compress", "pass the float weights",
    ),
    (
        "compress([jn.Stage('w4', w4)], network=net.replace(variables=jax.tree.map(lambda w: w * jnp.nan, variables)))",
        ValueError, "head/bias: 4 of 4 entries are NaN or Inf", "find the training step that diverged",
    ),
    (
        "compress([jn.Stage('w4', w4)], network=jn.Network(lambda v, x: jax.nn.softmax(apply(v, x)), variables))",
        ValueError, "ends in a softmax", "takes logits", "return what goes into the softmax",
    ),
    (
        "compress([jn.Stage('w4', w4)], network=jn.Network(lambda v, x: apply(v, x).argmax(-1), variables))",
        ValueError, "apply gives int32[2]", "needed are logits", "wrap apply",
    ),
    (
        "compress([jn.Stage('w4', w4)], network=jn.Network(lambda v, x: apply(v, x).T, variables))",
        ValueError, "apply gives float32[4, 2]", "needed are logits, float [2, classes]",
    ),
    ("compress([jn.Stage('w4', w4)], network=net.replace(still=['hidden/bais']))", ValueError, "nearest: hidden/bias"),
    (
        "compress([jn.Stage('w4', w4)], task=jn.classification(test=(images, labels + 1)))",
        ValueError, "label 4", "allowed are 0 to 3",
    ),
    (
        "compress([jn.Stage('w4', w4)], task=jn.classification(test=(images, np.eye(4, dtype=int)[labels])))",
        ValueError, "one-hot in int64", "pass them as floats",
    ),
    (
        "compress([jn.Stage('w4', w4)], task=jn.classification(test=(images, labels.astype(np.float32))))",
        ValueError, "labels are floats [2]", "labels.astype(int)",
    ),
    (
        "compress([jn.Stage('w4', w4)], task=jn.classification(test=(images, labels), labels='y'))",
        ValueError, "no entry 'y'", "labels=",
    ),
    (
        "compress([jn.Stage('w4', w4)], task=jn.classification(test={'x': images, 'y': labels}))",
        ValueError, "inputs x float32[B, 8]",
    ),
    ("jn.classification(test=(images, labels), headline='acc')", ValueError, "headline='acc'", "nearest: accuracy"),
    (
        "jn.classification(test=(images, labels), metrics=['f1'])",
        TypeError, "metrics is a list", "pass a dict {name: Metric}",
    ),
    (
        "jn.classification(test=(images, labels), batch_size=0)",
        ValueError, "batch_size=0", "allowed are the whole numbers",
    ),
    ("jn.classification(test=(images, labels[:10]))", ValueError, "0 [48, 8], 1 [10]", "equally many examples"),
    ("jn.classification(test=(images, list('abcd') * 12))", TypeError, "dtype <U1 is no number", "convert it first"),
    ("jn.classification(test=(images * np.nan, labels))", ValueError, "NaN or Inf", "clean the data first"),
    ("jn.classification(test=(images[:0], labels[:0]))", ValueError, "no examples", "at least one row"),
    ("jn.classification(test='digits.npz')", TypeError, "test is 'digits.npz'", "read the file first"),
    ("jn.classification(test=iter([(images, labels)]))", ValueError, "gone over once only", "pass a list"),
    (
        "jn.classification(train=(images[:, :5], labels), test=(images, labels))",
        ValueError, "float32[5] at 0", "need the same leaves",
    ),
    ("jn.language_model(test=images, per='word')", ValueError, "per='word'", "allowed are 'token' and 'byte'"),
    ("jn.Task('mse', test=(images, labels))", TypeError, "loss is 'mse'", "pass a function (outputs, batch)"),
    (
        "compress([jn.Stage('w4', w4)], task=jn.Task(lambda o, b: o.sum(-1)[None] - b[1], test=(images, labels[:, None])))",
        ValueError, "it mixes examples", "bring them, or the targets, to one shape",
    ),
    ("jn.evaluate(net, (images, labels))", TypeError, "task is a tuple", "pass a Task"),
    ("jn.calibrate(net, jn.quantize, [x])", TypeError, "call it, quantize(bits=...)"),
    ("jn.calibrate(net, w4, x)", TypeError, "batches is an array", "pass a list of batches"),
    (
        "jn.calibrated(jn.Network(apply, stored, rules=jn.static_ranges('w4a8')), iter([x]))",
        ValueError, "once only", "pass a list",
    ),
    ("jn.cut_units(share=50)", ValueError, "share=50", "in [0, 1)"),
    ("jn.cut_units(share=0.5).plan(net, x)", TypeError, "info is an array", "pass a ModelInfo"),
    (
        "jn.cut_units(jn.scores.taylor, share=0.5).plan(net, info, x)",
        ValueError, "taylor needs the loss on data", "pass info=calibrate(network, method, task)",
    ),
    ("jn.cut_units()", ValueError, "how many units go?", "pass one of share, params"),
    ("jn.cut_units(macs=2)", ValueError, "macs=2", "allowed are shares of it between 0 and 1"),
    ("jn.cut_units('taylor', share=0.5)", TypeError, "score='taylor'", "pass a callable, e.g. jn.scores.l2_norm"),
    ("jn.cut_units(share=0.5, least=0)", ValueError, "least=0", "the whole numbers from 1"),
    (
        "jn.cut_units(params=0.99).plan(net, info, x)",
        ValueError, "can't go; at the least", "pass at most params=0.919",
    ),
    ("jn.cut_units(share=0.5, protect='**').plan(net, info, x)", ValueError, "no unit can go", "protected by '**'"),
    ("jn.cut_units(share=0.5, protect='hiden/*').plan(net, info, x)", ValueError, "matches no layer", "nearest"),
    (
        "jn.cut_units(widths={'hidden/kernel': 100}).plan(net, info, x)",
        ValueError, "100 units of 16", "allowed are 1 to 16",
    ),
    ("jn.transfer_weights(variables, variables, rename={'a': 'b'})", TypeError, "rename is a dict", "a list of pairs"),
]  # fmt: skip

TRAINING = [
    (
        "jn.init_train_state(variables, jn.quantize, optax.sgd(0.1), jax.random.key(0))",
        TypeError, "call it, quantize(bits=...)",
    ),
    (
        "jn.init_train_state(variables, w4, optax.sgd, jax.random.key(0))",
        TypeError, "optimizer is the function sgd", "optax.sgd(0.1)",
    ),
    ("jn.init_train_state(variables, w4, optax.sgd(0.1), 0)", TypeError, "key is 0", "jax.random.key(0)"),
    (
        "jn.make_step(w4, optax.sgd(0.1), lambda v, b, k: 0.0)",
        TypeError, "loss is a Transform", "a function (variables, batch, key)",
    ),
    ("step(lambda v, b: jnp.mean(apply(v, b)))", TypeError, "the function <lambda>(v, b)", "(variables, batch, key)"),
    (
        "step(lambda v, b, k: jnp.mean(apply(v, b)))",
        TypeError, "loss returned an array float32[]", "(scalar, ({}, {}))",
    ),
]  # fmt: skip

DEPLOYMENT = [
    ("jn.save(net, tmp / 'a')", TypeError, "network is a", "pass a Network"),
    ("jn.save(3, net)", TypeError, "directory is 3", "pass the name"),
    ("jn.save(artifact(), net)", FileExistsError, "exists", "pass overwrite=True"),
    ("jn.load(tmp / 'nowhere')", FileNotFoundError, "no such directory", "pass the folder that was written"),
    ("jn.load(artifact())", ValueError, "holds no exported program", "pass apply="),
    ("jn.load(artifact(), model)", TypeError, "apply is a Dense", "jaxopt_nn.linen(model, variables)"),
    (
        "(artifact() / 'manifest.json').write_text('{'); jn.load(tmp / 'artifact', apply)",
        ValueError, "no valid JSON", "write it anew",
    ),
    (
        "jn.save_artifact(tmp / 'tree', variables); jn.load(tmp / 'tree', apply)",
        ValueError, "no network", "load_artifact",
    ),
    ("jn.save_artifact(tmp / 'b', {'a': 'x'})", TypeError, "a: str can't be stored", "pass dicts, lists"),
    ("jn.exported(net, x, ['cpu'])", TypeError, "inputs is an array", "pass a tuple"),
    ("jn.exported(net, (x,), 'cpu')", ValueError, "export for 'cpu'", "pass a list"),
    ("jn.predictor(net, devices='cpu')", TypeError, "devices is 'cpu'", "jax.devices()"),
    ("jn.predictor(net, batch_size=0)", ValueError, "batch_size=0", "allowed are 1 and more"),
    ("jn.predictor(net)(x[:, :5])", ValueError, "fails on inputs float32[B, 5]", "called as apply(variables, *inputs)"),
    ("jn.predictor(net)(x, x[:2])", ValueError, "0 has 4, 1 has 2 rows", "pass inputs of equally many rows"),
    ("jn.Checkpoints(tmp, seconds='often')", ValueError, "checkpoint_seconds='often'", "allowed are 0"),
]  # fmt: skip

GROUPS = {
    "Stages and recipes": RECIPES,
    "Transforms": TRANSFORMS,
    "Patterns": PATTERNS,
    "Networks, rules and modules": NETWORKS,
    "Tasks, data and passes": DATA,
    "A training loop of one's own": TRAINING,
    "Artifacts, export and inference": DEPLOYMENT,
}
