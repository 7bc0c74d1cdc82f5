//! Passes and their replays, side by side.

use super::*;
use crate::config::ComputeDtype;
use crate::data::batch::{PackedBatch, PromptSharing};
use crate::model::decoder::{self, Decoder, Purpose, TokenTarget};
use crate::model::family;
use crate::model::low_rank::Adaptation;
use crate::model::weights::{SavedDtype, TensorToSave, save};
use crate::ops::buffer::{Buffer, most_lent};
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::process::Command;

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": true,
    })
}

/// Norms behind attention and MLP, and on queries and keys.
fn gemma3() -> Value {
    let mut config = llama();
    let more = json!({
        "model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 512,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "rope_local_base_freq": 10000.0,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn load(config: &Value, adaptation: Option<&Adaptation>) -> Decoder {
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = family::expected_tensors(&family::describe(config).unwrap())
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            (name, shape, vec![0.01f32; n])
        })
        .collect();
    let to_save: Vec<_> =
        tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::F32 }).collect();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    save(dir.path(), &to_save, u64::MAX).unwrap();
    match adaptation {
        Some(adaptation) => Decoder::load_adapted(dir.path(), adaptation, ComputeDtype::F32, Purpose::Train).unwrap(),
        None => Decoder::load(dir.path(), ComputeDtype::F32, Purpose::Train).unwrap(),
    }
}

/// A pass as the step makes it, but for the blocks' backward.
fn begin(model: &Decoder, batch: &PackedBatch, gradient: Gradient, memory: StepMemory) -> (Pass, Option<decoder::Returning>) {
    let targets: Vec<_> = (1..batch.n_tokens() as u32).map(|row| TokenTarget { row, token: row % 300 }).collect();
    let targets = if gradient == Gradient::OfStates { &[] } else { &targets[..] };
    let has_backward = gradient != Gradient::None;
    let forward = model.forward(batch, if has_backward { memory.keep } else { Keep::Nothing }).unwrap();
    let scored = model.score(&forward.hidden_ND, targets, if has_backward { memory.kept_logits } else { 0 }).unwrap();
    let begun = has_backward.then(|| {
        let d_hidden = Buffer::zeros(forward.hidden_ND.dims()).unwrap();
        let d_log_probs = vec![1.0; targets.len()];
        model.score_backward(&forward.hidden_ND, (targets, scored), &d_log_probs, &d_hidden).unwrap();
        model.begin_backward(forward, d_hidden).unwrap()
    });
    (Pass::new(batch, model.description(), targets.len(), gradient), begun)
}

fn batch(n: usize) -> PackedBatch {
    let mut batch = PackedBatch::default();
    batch.push_responses(&vec![1; n / 4], &[&vec![2; n / 4], &vec![3; n / 2]], PromptSharing::Shared);
    batch
}

/// Alone in its process: the pool is the process's own. Each pass needs more than the one before, and so sets the pool's mark.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn alone() {
    let model = std::env::var("MPO_TEST_MODEL").unwrap();
    #[cfg(feature = "emulator")]
    if let Some(model) = model.strip_prefix("GPU ") {
        return crate::ops::gpu::on_emulated_gpu(|| passes_are_as_their_replay(model, true));
    }
    passes_are_as_their_replay(&model, false);
}

fn passes_are_as_their_replay(model: &str, on_gpu: bool) {
    let every = |n: usize| Keep::BlockInputs { every: NonZeroUsize::new(n).unwrap() };
    let config = if model == "gemma3" { gemma3() } else { llama() };
    let adapted = ["1.self_attn.q_proj", "1.mlp.down_proj", "2.mlp.up_proj"].map(|name| format!("model.layers.{name}"));
    let adaptation = Adaptation { rank: 24, scale: 1.0, dropout: 0.1, seed: 0, projections: adapted.into() };
    let decoder = load(&config, (model == "adapter").then_some(&adaptation));
    let terms = decoder.adaptation().map(|adaptation| LowRankTerms::new(adaptation, decoder.description()));
    // The emulated GPU takes its time.
    let shorter = if on_gpu { 2 } else { 1 };
    let everything = StepMemory { keep: Keep::ForBackward, kept_logits: 0 };
    for (n, gradient, memory) in [
        (300, Gradient::None, everything),
        (300, Gradient::OfStates, StepMemory { keep: every(1), ..everything }),
        (400, Gradient::OfScores, StepMemory { keep: every(2), ..everything }),
        (700, Gradient::OfScores, everything),
        (900, Gradient::OfScores, StepMemory { kept_logits: 1 << 20, ..everything }),
    ] {
        let (pass, begun) = begin(&decoder, &batch(n / shorter), gradient, memory);
        begun.into_iter().for_each(|begun| decoder.finish_backward(begun).unwrap());
        let (d, terms) = (decoder.description(), terms.as_ref());
        let mut replay = if on_gpu { Replay::on_gpu(d, terms, size_of::<f32>()) } else { Replay::new(d, terms) };
        replay.pass(&pass, memory);
        // A piece may be somewhat larger than what was asked for.
        let (predicted, seen) = (replay.ledger.peak().total() as f64, most_lent() as f64);
        // Angles are copied to a GPU, and not from the pool of the emulated one.
        let most = if on_gpu { 1.02 } else { 1.0 };
        assert!((0.93..=most).contains(&(predicted / seen)), "{n} tokens, {gradient:?}, {memory:?}: {predicted}, and it was {seen}");
    }
    if terms.is_some() || on_gpu {
        return;
    }
    for (n, keep) in [(1600, every(1)), (2200, every(2)), (2400, Keep::ForBackward)] {
        let memory = StepMemory { keep, ..everything };
        let two = [(n, Gradient::OfStates), (n + 100, Gradient::OfScores)];
        let (passes, begun): (Vec<_>, Vec<_>) = two.map(|(n, gradient)| begin(&decoder, &batch(n), gradient, memory)).into_iter().unzip();
        decoder.backward_together(begun.into_iter().flatten().collect(), |_| Ok(())).unwrap();
        let mut replay = Replay::new(decoder.description(), None);
        replay.together(&passes, memory);
        let (predicted, seen) = (replay.ledger.peak().total() as f64, most_lent() as f64);
        assert!((0.93..=1.0).contains(&(predicted / seen)), "together, {memory:?}: {predicted}, and it was {seen}");
    }
}

#[test]
fn a_pass_takes_from_the_pool_what_its_replay_says() {
    // Copies made by candle, as of what a norm of queries and keys changes, do not come from the pool on the emulated GPU.
    let on_gpu: &[&str] = if cfg!(feature = "emulator") { &["GPU llama", "GPU adapter"] } else { &[] };
    for model in [&["llama", "gemma3", "adapter"], on_gpu].concat() {
        let mut test = Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "plan::replay::tests::alone", "--ignored", "--test-threads=1"]).env("MPO_TEST_MODEL", model);
        let output = test.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{model}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// One block and no head, by hand, in values a token. The fullest moment is when the gradient of gate and up is made.
#[test]
fn a_small_model_by_hand() {
    let mut description = load(&llama(), None).description().clone();
    description.layers.truncate(1);
    let (n, d, qkv, i) = (1 << 15, 64, 128, 160);
    let pass = Pass { n_tokens: n, n_visible: 0, n_largest_tree: n, n_scored: 0, n_compared: 0, gradient: Gradient::OfStates };
    let mut replay = Replay::new(&description, None);
    replay.pass(&pass, StepMemory { keep: Keep::ForBackward, kept_logits: 0 });
    let r = 1;
    let saved = d + r + qkv + d + 4 + d + r + 2 * i;
    let held = replay.ledger.peak();
    assert_eq!(held.of(Kind::Activation), n * saved);
    assert_eq!(held.of(Kind::Scratch), n * (d + 2 * i + 2 * i), "dy; d_activated, activated; d_gate_up");
    assert_eq!(held.of(Kind::Logits), 0);
}
