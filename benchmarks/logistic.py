"""How long the 45 fits of the fine-grained protocol take, by who does them.

    python benchmarks/logistic.py --data ../shared/data/caltech101 --model vit_tiny_patch16_224

`batched`: all constants at once (`fit_logistic`); `path`: one after the other, each started from
its neighbour, strongest penalty first; `sklearn`: scikit-learn, each from zero, as the authors do.
"""

import argparse
import time
import warnings

import torch

import proteus
from proteus.evaluation import extract_features, fit_logistic, penalties, standardise
from proteus.evaluation.logistic_fit import holdout_split, logistic_scores


def batched(x, y, constants, classes, steps):
    return fit_logistic(x, y, constants, num_classes=classes, max_iter=steps)


def path(x, y, constants, classes, steps):
    found, start = [], None
    for constant in constants.flip(0):
        start = fit_logistic(x, y, constant[None], num_classes=classes, max_iter=steps, start=start)
        found.append(start)
    return tuple(torch.cat(part).flip(0) for part in zip(*found, strict=True))


def sklearn(x, y, constants, classes, steps):
    from sklearn.linear_model import LogisticRegression

    x, y = x.cpu().numpy(), y.cpu().numpy()
    fits = [LogisticRegression(C=float(c), max_iter=steps, tol=1e-12).fit(x, y) for c in constants]
    return (
        torch.stack([torch.from_numpy(fit.coef_) for fit in fits]),
        torch.stack([torch.from_numpy(fit.intercept_) for fit in fits]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="labelled images with a split train")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="random weights")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--sweep", default="paper", choices=["paper", "official"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--solvers", nargs="+", default=["batched", "path", "sklearn"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # scikit-learn says that large constants have not converged
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    size = arguments.image_size
    student = proteus.Student(arguments.model, image_size=size)
    features = extract_features(student, arguments.data, split="train", resize=size)
    train, val = holdout_split(len(features))
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    scale = standardise(features.cls[train])
    x, held = (scale(features.cls[part]).to(device, dtype) for part in (train, val))
    y, wanted = features.labels[train].to(device), features.labels[val].to(device)
    constants, steps = penalties(arguments.sweep)
    print(f"{len(x)} images, {x.shape[1]} features, {features.num_classes} classes, {device}")
    for name in arguments.solvers:
        begun, busy = time.perf_counter(), time.process_time()
        weights, bias = globals()[name](x, y, constants, features.num_classes, steps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds, busy = time.perf_counter() - begun, time.process_time() - busy
        hits = [
            int((logistic_scores(held, w.to(held), b.to(held)).argmax(1) == wanted).sum())
            for w, b in zip(weights, bias, strict=True)
        ]
        print(
            f"{name:8} {seconds:8.1f} s ({busy:.1f} s of CPU)  right on val: {hits[::4]} "
            f"best {max(hits)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
