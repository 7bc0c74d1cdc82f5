//! `mpo` fine-tunes chat models with Multilingual reward gaP Optimization (arXiv 2505.16869). This page is the guide to its code.
//!
//! # What is computed
//!
//! A row of data is a parallel pair: prompt `x`, chosen (safe) answer `y_w` and rejected (unsafe) answer `y_l`, once in the dominant language
//! `d` and once in a target language `t`; plain preference data has the latter only. With the length-normalised reward gap
//!
//! ```text
//! RG(π, x, y_w, y_l) = log π(y_w | x) / |y_w|  -  log π(y_l | x) / |y_l|
//! ```
//!
//! the loss over a batch of rows is
//!
//! ```text
//! L  = L1 + λ L2
//! L1 = mean over rows of ( β RG(policy, target pair) - RG(reference, dominant pair) )²      objective::mpo, or another loss
//! L2 = mean over dominant sequences of || h(policy) - h(reference) ||²                      objective::retention
//! ```
//!
//! where `h` is the hidden state after the final norm. The reference is the checkpoint that training starts from, frozen: its part of the
//! loss never changes, so it is computed once and is a column of the data from then on ([`reference`](mod@reference)).
//!
//! # `mpo train`, in reading order
//!
//! ```text
//! TOML + --set                   config      -> RunConfig, every problem of it at once; resolved, it stands beside the weights
//! folder, org/name, https        hub         -> local files
//! file, piece by piece           data        -> PreferenceRows -> chat template, tokenizer -> Vec<EncodedRow> -> PackedBatch
//! checkpoint                     model       -> Decoder, the policy; with [adapter], low-rank terms beside frozen weights
//! policy, before its first step  reference   -> what the loss and retention read of it (for MPO RG_d and h_d of every distinct dominant pair), cached by content
//! PackedBatch                    train::step -> hidden states -> log-probabilities, pooled states -> objective -> gradients
//! gradients                      train       -> clip, AdamW (train::update), checkpoint, metrics.jsonl
//! ```
//!
//! Before anything large is loaded, [`plan`] counts what the run's own batches will take, in operations and in bytes; [`train::forecast`] asks it
//! whether the run fits, where it computes and on the host, and what of a forward may be kept, and the log compares every step with the same count.
//!
//! [`train::canary`] lets the policy answer benign prompts now and then, because no loss shows what else is lost.
//!
//! [`train::run`] is the loop, on one screen; [`train::step`] is one optimizer batch; [`objective`] is the paper, and the losses that it compares
//! itself with. A loss says which scores it reads ([`objective::Passes`]); which passes are run, of policy and reference, follows from that
//! alone.
//!
//! # `mpo eval`
//!
//! [`eval`] asks, judges and counts, in two phases with files between; its page is the guide. It sees a model only through [`generate`], which turns the
//! packed forward of training into text: the same blocks read a prompt, and then one token of each sequence at a time against the keys and values that
//! they left ([`model::cache`]), by products of few rows that read every weight once.
//!
//! # The engine
//!
//! The decoder does not use candle's autograd: candle is tensor, device and dtype, and a block is `forward(x) -> (y, saved)` and
//! `backward(saved, dy) -> dx`, with weight gradients added into buffers that the parameters own. So activation checkpointing is calling the
//! forward again, a frozen weight costs no product, accumulation is a matrix product that adds, and the order of every sum is fixed.
//! Low-rank adapters touch the linear op and nothing else: a term beside its product ([`model::low_rank`]), and no gradient buffers beside frozen
//! weights, from which the rest follows: no weight gradients, no moments, a backward that ends at the lowest term. [`adapter`] is everything around
//! that: which projections, first values, PEFT's format, merging.
//!
//! [`ops`] says how an op reaches the values of candle tensors, and why that way. One [`model::description`] covers all families.
//!
//! An op runs where its tensors are. [`ops::gpu`] is the other side of every op: kernels of our own and cuBLAS, on values in f32 or bf16, run by the CUDA
//! driver or, in tests, by an emulator that is the same sources compiled for the CPU when a test first asks for it. An op without such a side still works there: [`ops::read`] and
//! [`ops::update`] copy. What the host computes in the midst of a step, the loss above all, stands in the GPU's queue between kernels ([`ops::host`]), so that
//! nobody waits. Where a model lies is [`ops::Place`]; [`device`] chooses it.
//!
//! What is not computed: padding (sequences are packed, [`data::batch`]), a shared prompt twice (chosen and rejected answer are two branches
//! behind one prompt), the head on the dominant side, logits away from the answers, scores of more than a block of queries
//! ([`ops::attention`]), and the reference during training.
//!
//! What is not in memory: a second model, logits beyond a budget ([`ops::log_prob`]), activations of more than one micro-batch of one side, and,
//! with activation checkpointing ([`model::decoder::Keep`]), those of more than a few blocks. With `optimizer.in_backward` the forwards of a step wait for each
//! other instead, and gradients of more than one block are not in memory ([`train::update`](mod@train::update)). Memory of activations is used again from step to
//! step ([`ops::buffer`]).
//!
//! # Invariants
//!
//! - [`objective`] never sees a model, a tokenizer, a device or a file. [`model`] knows nothing of training, [`ops`] nothing of models.
//! - A run is a function of (resolved configuration, data, weights, seed). On one kind of CPU it repeats bit for bit, whatever the number of
//!   threads and however often it was killed and resumed. No clock, no hash order, no split that depends on the number of threads.
//! - Up to 1e-6, relative, it does not matter how rows are ordered in a batch, cut into micro-batches, or share prompts.
//! - A sequence's forward does not depend on what it is packed with, bit for bit. At step 0 retention is therefore exactly 0, which is tested
//!   in every run.
//! - Every op has its backward in its file, checked in f64 by finite differences. The engine as a whole is checked entry by entry against a slow
//!   decoder on candle's autograd (`tests/it/slow.rs`), against candle-transformers, and against PyTorch (`tests/it/golden.rs`, `tests/oracle`);
//!   every loss against TRL (`tests/it/objectives`).
//! - Kernels sum in an order that follows from shapes: no atomics. Each is tested against its CPU twin, twice with the threads in another order.
//! - Logits in memory are bounded by a budget, never by the batch. What is kept for the backward and what is made again does not change a bit.
//! - No default value stands in two places.
//! - A file that a reader may meet is whole: it is written under another name, synced, and renamed. Nothing is unpickled; weights are
//!   safetensors.
//! - What a stranger wrote is bounded before it is believed: sizes by the weights on disk, a chat template by steps, output, memory and time
//!   ([`allocator::allowance`]), JSON by one reading ([`files::json`]).
//! - Only [`command`] writes to stdout, and only data; talk goes to stderr. Whatever is said is made harmless to terminals, and rid of passwords in
//!   addresses, by the function that says it.
//! - Only [`web`] connects to another machine. A key reaches the scheme, host and port that it is meant for, this machine is asked past every proxy, and
//!   no answer is taken beyond its limit.
//!
//! `tests/it/architecture.rs` reads which module uses which off the code.
//!
//! # Adding to it
//!
//! One file and one match arm each: a model family ([`model::family`]), an objective ([`objective`]), a data format ([`data`]), a subcommand
//! ([`command`]). The README walks through a family and a loss.

#![allow(non_snake_case)] // tensors carry their shape as a suffix: N packed tokens, D hidden size, V vocabulary

pub mod adapter;
pub mod allocator;
pub mod cli;
pub mod command;
pub mod config;
pub mod data;
pub mod device;
pub mod digest;
pub mod escape;
pub mod eval;
pub mod files;
pub mod gaps;
pub mod generate;
pub mod hub;
pub mod interrupt;
pub mod model;
pub mod objective;
pub mod ops;
pub mod plan;
pub mod progress;
pub mod reference;
pub mod scoring;
pub mod secret;
pub mod text;
pub mod train;
pub mod web;

/// As in the program: tests count what a thread may take.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: allocator::LargePages = allocator::LargePages;
