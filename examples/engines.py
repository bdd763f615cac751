"""Train y = 2x in each engine that is usable here, and draw the loss curves over each other."""

from pathlib import Path

import numpy as np

from pydeq import plot, presets
from pydeq.engines import find_engines

usable = []
for engine in find_engines():
    if engine.name in ("jax", "julia"):
        print(f"{engine.name}: {'usable' if engine.usable else 'not usable'}. {engine.detail}")
        if engine.usable:
            usable.append(engine.name)

X, y = presets.double_data()
models = {name: presets.double(engine=name, max_iter=300).fit(X, y) for name in usable}
for name, model in models.items():
    difference = np.abs(np.array(model.loss_curve_) - models[usable[0]].loss_curve_).max()
    print(f"{name}: prediction for -5 is {model.predict([[-5.0]])[0]:.4f}")
    print(f"{name}: loss curve within {difference:.1e} of that of {usable[0]}")

Path("out").mkdir(exist_ok=True)
plot.history_curves(models).figure.savefig("out/engines.png", dpi=120)
print("figure: out/engines.png")
