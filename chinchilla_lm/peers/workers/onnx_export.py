"""A token classifier of transformers as an ONNX file in float32."""


def export(source, path):
    """source: a Hugging Face folder."""
    import torch
    import transformers

    model = transformers.AutoModelForTokenClassification.from_pretrained(source, local_files_only=True).eval()
    ones = torch.ones(2, 8, dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    inputs = (ones, ones)
    if getattr(model.config, "type_vocab_size", 0):
        names, inputs = [*names, "token_type_ids"], (*inputs, ones * 0)
    axes = {name: {0: "rows", 1: "tokens"} for name in [*names, "logits"]}
    torch.onnx.export(
        model,
        inputs,
        path,
        input_names=names,
        output_names=["logits"],
        dynamic_axes=axes,
        dynamo=False,
        opset_version=17,
    )
