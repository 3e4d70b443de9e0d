"""Slow and obvious, written from the paper; never imported outside tests."""

import math

import torch
import torch.nn.functional as F

from proteus import Losses


def mse(student, teacher):
    """Mean over all elements, one row at a time."""
    pairs = list(zip(student.flatten(0, -2), teacher.flatten(0, -2), strict=True))
    return sum(((s - t) ** 2).mean() for s, t in pairs) / len(pairs)


def cosine(student, teacher):
    """Mean of 1 - cosine, one row at a time."""
    pairs = list(zip(student.flatten(0, -2), teacher.flatten(0, -2), strict=True))
    return sum(1 - s @ t / (s @ s * (t @ t)).sqrt() for s, t in pairs) / len(pairs)


def smooth_l1(student, teacher):
    """Huber's, with its corner at 1, one element at a time."""
    found = (student - teacher).abs().flatten().tolist()
    return torch.tensor([d * d / 2 if d < 1 else d - 0.5 for d in found]).mean()


def relations(student, teacher):
    """Mean squared difference of cosines between all pairs of tokens of an image."""
    found = []
    for s, t in zip(student, teacher, strict=True):
        for i in range(len(s)):
            for j in range(len(s)):
                ours = s[i] @ s[j] / (s[i].norm() * s[j].norm())
                found.append((ours - t[i] @ t[j] / (t[i].norm() * t[j].norm())) ** 2)
    return torch.stack(found).mean()


def two_passes(distiller, images, hidden):
    """The step in two full student passes, every image in both."""
    loss = distiller.loss
    target, seen = distiller.teacher(images), distiller.student(images)
    masked = distiller.student(images, hidden)
    cls = loss.token_head(seen.cls)
    token = mse(cls, target.cls)
    rows = torch.cat([cls[:, None], loss.feature_head(seen.patches)], 1)
    feature = mse(rows, torch.cat([target.cls[:, None], target.patches], 1))
    patch = token * 0
    if hidden.any():
        patch = mse(loss.patch_head(masked.patches)[hidden], target.patches[hidden])
    total = loss.token * token + loss.feature * feature + loss.patch * patch
    return Losses(total, token, feature, patch)


def block_mask(grid, wanted, generator):
    """A block mask of iBOT, one patch at a time: 0 or 1, [h, w]."""
    mask, left = torch.zeros(grid), wanted
    smallest = (min(grid) // 3) ** 2
    tries = 10
    while left > 0 and tries > 0:
        tries -= 1
        area = generator.uniform(smallest, left)
        aspect = math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid[0] or width >= grid[1]:
            continue
        top, side = generator.randint(0, grid[0] - height), generator.randint(0, grid[1] - width)
        block = mask[top : top + height, side : side + width]
        gain = block.numel() - int(block.sum())
        if 0 < gain <= left:
            block[:] = 1
            left, tries = left - gain, 10
    return mask


def openai_names(tensors):
    """A timm CLIP tower's tensors as OpenAI names and shapes them."""
    names = {
        "blocks.": "transformer.resblocks.", ".attn.qkv.": ".attn.in_proj_",
        ".attn.proj.": ".attn.out_proj.", ".norm1.": ".ln_1.", ".norm2.": ".ln_2.",
        ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.", "patch_embed.proj.": "conv1.",
        "norm_pre.": "ln_pre.", "cls_token": "class_embedding", "pos_embed": "positional_embedding",
    }  # fmt: skip
    renamed = {}
    for key, value in tensors.items():
        name = f"ln_post.{key.removeprefix('norm.')}" if key.startswith("norm.") else key
        for timms, theirs in names.items():
            name = name.replace(timms, theirs)
        renamed[name] = value
    renamed["class_embedding"] = renamed["class_embedding"].flatten()
    renamed["positional_embedding"] = renamed["positional_embedding"][0]
    return renamed


def clip_visual_tower(weights, images, heads):
    """CLIP's visual tower, [B, 1 + N, D]: `ln_post` on the class token only, no projection."""
    width = weights["class_embedding"].shape[0]

    def norm(x, name):
        return F.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    patches = F.conv2d(images, weights["conv1.weight"], stride=weights["conv1.weight"].shape[-1])
    patches = patches.flatten(2).transpose(1, 2)
    cls = weights["class_embedding"].expand(images.shape[0], 1, width)
    x = norm(torch.cat([cls, patches], 1) + weights["positional_embedding"], "ln_pre")
    blocks = {int(k.split(".")[2]) for k in weights if k.startswith("transformer.resblocks.")}
    for block in sorted(blocks):
        name = f"transformer.resblocks.{block}"
        attention = torch.nn.MultiheadAttention(width, heads, batch_first=True).eval()
        attention.load_state_dict(
            {k.removeprefix(f"{name}.attn."): v for k, v in weights.items() if f"{name}.attn." in k}
        )
        y = norm(x, f"{name}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0].detach()
        hidden = F.linear(norm(x, f"{name}.ln_2"), *_linear(weights, f"{name}.mlp.c_fc"))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x = x + F.linear(hidden, *_linear(weights, f"{name}.mlp.c_proj"))
    return torch.cat([norm(x[:, :1], "ln_post"), x[:, 1:]], 1)


def _linear(weights, name):
    return weights[f"{name}.weight"], weights[f"{name}.bias"]
