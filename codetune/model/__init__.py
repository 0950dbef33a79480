"""The only place that loads networks and runs them.

load           pretrained (the one door), load, model_files, file_check, tokenizer_check, chat_format
layers         adapters, attention, packing_check, plain_layers, lm_head, tensor_parallel
likelihood     likelihood
generation     decoding (what decoders share), decoder_choice, batch_generator, continuous_batching, vllm_engine
"""
