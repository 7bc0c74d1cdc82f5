//! Generation: against the uncached forward, against transformers, and that a text depends on nothing but its own request.

use crate::golden::{FAMILIES, fixtures};
use crate::support::{self, PAD, Random};
use mpo::adapter::Adapter;
use mpo::config::{AdapterConfig, AdapterKind, ComputeDtype, DataConfig};
use mpo::data::batch::PackedBatch;
use mpo::data::encode::{EncodedPreference, Response};
use mpo::data::pair::{Message, Role};
use mpo::generate::{Choices, Codec, Completion, Engine, Event, FinishReason, Generator, Prompt, Request, Sampling, TokenRequest};
use mpo::model::cache::Cache;
use mpo::model::decoder::{Decoder, Keep, Purpose};
use mpo::model::family::describe_folder;
use mpo::ops;
use mpo::scoring::{KeptStates, score};
use serde::Deserialize;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn load(folder: &Path) -> Decoder {
    Decoder::load(folder, ComputeDtype::F32, Purpose::Inference).unwrap_or_else(|error| panic!("{}: {error:#}", folder.display()))
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny")
}

fn codec() -> Codec {
    Codec::load(&tiny(), &DataConfig::default()).unwrap()
}

/// Final-norm hidden states of a whole text, without a cache.
fn hidden(model: &Decoder, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut batch = PackedBatch::default();
    batch.push_segment(tokens, None, true);
    model.forward(&batch, Keep::Nothing).unwrap().hidden_ND.to_vec2().unwrap()
}

fn random_tokens(random: &mut Random, n: usize, n_vocab: usize) -> Vec<u32> {
    (0..n).map(|_| 3 + random.below(n_vocab - 3) as u32).collect()
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    let scale = expected.iter().fold(0f32, |max, v| max.max(v.abs()));
    let worst = actual.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= tolerance * scale, "{what}: off by {worst}, of values up to {scale}");
}

/// Reads two texts bit by bit, and compares every state with that of the whole text.
fn assert_bit_by_bit_equals_whole(what: &str, model: &Decoder, tolerance: f32) {
    let mut random = Random::new(5);
    let texts = [60, 47].map(|n| random_tokens(&mut random, n, model.description().vocab_size));
    let expected = texts.each_ref().map(|text| hidden(model, text));
    // One prompt is longer than every window, the other a single token.
    let starts = [33, 1];
    let prompts: Vec<&[u32]> = texts.iter().zip(starts).map(|(text, n)| &text[..n]).collect();
    let (first, mut caches) = model.read_texts(&prompts).unwrap();
    let check = |i: usize, position: usize, state: &[f32]| {
        assert_close(&format!("{what}, text {i}, position {position}"), state, &expected[i][position], tolerance);
    };
    for (i, state) in first.to_vec2::<f32>().unwrap().iter().enumerate() {
        check(i, starts[i] - 1, state);
    }
    for step in 0..27 {
        let tokens: Vec<u32> = (0..2).map(|i| texts[i][starts[i] + step]).collect();
        let mut caches: Vec<&mut Cache> = caches.iter_mut().collect();
        let next = model.read_next(&tokens, &mut caches).unwrap().to_vec2::<f32>().unwrap();
        next.iter().enumerate().for_each(|(i, state)| check(i, starts[i] + step, state));
    }
    assert_eq!(caches.iter().map(Cache::n_tokens).collect::<Vec<_>>(), [60, 28]);
}

#[test]
fn every_family_reads_bit_by_bit_what_it_reads_as_a_whole() {
    for family in FAMILIES {
        assert_bit_by_bit_equals_whole(family, &load(&fixtures().join(family)), 2e-5);
    }
}

#[test]
fn so_does_a_model_with_an_adapter() {
    for family in ["llama", "gemma2", "qwen2"] {
        let folder = fixtures().join(family);
        let adapter = mpo::adapter::peft::open(&fixtures().join("peft").join(family), &describe_folder(&folder).unwrap()).unwrap();
        let model = adapter.load(&folder, ComputeDtype::F32, Purpose::Inference).unwrap();
        assert_bit_by_bit_equals_whole(family, &model, 2e-5);
    }
    // The policy of a run under way: dropout and gradient buffers are there, and play no part.
    let folder = fixtures().join("llama");
    let config = AdapterConfig { kind: AdapterKind::Lora, rank: 3, alpha: Some(6.0), dropout: 0.5, ..AdapterConfig::default() };
    let adapter = Adapter::new(&config, 1, &describe_folder(&folder).unwrap()).unwrap();
    let model = adapter.load(&folder, ComputeDtype::F32, Purpose::Train).unwrap();
    let mut random = Random::new(9);
    for parameter in model.low_rank_parameters() {
        ops::update(&parameter.value, |values| values.iter_mut().for_each(|value| *value = 0.2 * random.signed())).unwrap();
    }
    assert_bit_by_bit_equals_whole("a run's policy", &model, 2e-5);
}

#[test]
fn in_bf16_both_ways_agree_to_its_precision() {
    let model = Decoder::load(&fixtures().join("llama"), ComputeDtype::Bf16, Purpose::Inference).unwrap();
    assert_bit_by_bit_equals_whole("bf16", &model, 0.1);
}

#[derive(Deserialize)]
struct Fixture {
    texts: HashMap<String, Vec<FixtureText>>,
}

#[derive(Deserialize)]
struct FixtureText {
    prompt: Vec<u32>,
    repetition_penalty: f64,
    tokens: Vec<u32>,
    log_probs: Vec<f64>,
}

#[test]
fn greedy_texts_are_those_of_transformers() {
    let text = std::fs::read_to_string(fixtures().join("generation.json")).unwrap();
    let fixture: Fixture = serde_json::from_str(&text).unwrap();
    assert_eq!(fixture.texts.len(), FAMILIES.len());
    for (family, texts) in fixture.texts {
        let model = load(&fixtures().join(&family));
        let mut engine = Engine::new(&model);
        let request = |text: &FixtureText| TokenRequest {
            prompt: text.prompt.clone(),
            sampling: Sampling { repetition_penalty: text.repetition_penalty, ..Sampling::default() },
        };
        let mut new = engine.admit(texts.iter().map(request).enumerate().collect()).unwrap();
        for place in 0..texts[0].tokens.len() {
            for token in &new {
                let text = &texts[token.id];
                assert_eq!(token.token, text.tokens[place], "{family}, text {}, place {place}", token.id);
                let off = (f64::from(token.log_prob) - text.log_probs[place]).abs();
                assert!(off < 1e-4, "{family}, text {}, place {place}: log-probability off by {off}", token.id);
            }
            assert_eq!(new.len(), texts.len());
            new = engine.step().unwrap();
        }
    }
}

fn user(text: &str) -> Prompt {
    Prompt::Chat(vec![Message { role: Role::User, content: text.into() }])
}

/// Questions of different lengths, greedy and drawn, with and without stop strings.
fn requests() -> Vec<Request> {
    let questions =
        ["May I take the umbrella?", "Rain", "我可以借雨伞吗？", "Je, naweza kuchukua mwavuli wa jirani yangu bila kuuliza kwanza?", "?"];
    let mut requests: Vec<Request> = questions.iter().map(|text| Request::greedy(user(text), 24)).collect();
    for (i, text) in questions.iter().enumerate() {
        let sampling =
            Sampling { temperature: 1.1, top_k: NonZeroUsize::new(50 * (i % 2)), top_p: 0.95, repetition_penalty: 1.1, seed: i as u64 };
        requests.push(Request { prompt: user(text), sampling, max_new_tokens: 5 + 7 * i, stop: vec![" the".into(), "。".into()] });
    }
    requests
}

#[test]
fn a_text_does_not_depend_on_the_batch_the_order_or_the_threads() {
    let (model, codec) = (load(&tiny()), codec());
    let complete =
        |batch_size: usize, requests: Vec<Request>| Generator { batch_size, ..Generator::new(&model, &codec) }.complete(requests).unwrap();
    let alone: Vec<Completion> = requests().into_iter().flat_map(|request| complete(1, vec![request])).collect();
    assert!(alone.iter().any(|completion| completion.finish_reason == FinishReason::Stop));
    assert!(alone.iter().any(|completion| completion.finish_reason == FinishReason::Length));
    for batch_size in [1, 2, 3, 7, 16] {
        assert_eq!(complete(batch_size, requests()), alone, "{batch_size} at once");
    }
    let mut reversed = complete(4, requests().into_iter().rev().collect());
    reversed.reverse();
    assert_eq!(reversed, alone);
    for n_threads in [1, 3, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        assert_eq!(pool.install(|| complete(4, requests())), alone, "{n_threads} threads");
    }
}

#[test]
fn log_probabilities_are_those_of_scoring() {
    let (model, codec) = (load(&tiny()), codec());
    let generator = Generator::new(&model, &codec);
    for (request, completion) in requests().into_iter().zip(generator.complete(requests()).unwrap()) {
        let response = |tokens: &[u32]| Response { tokens: tokens.to_vec(), n_end_tokens: 0 };
        let pair = EncodedPreference {
            lang: "en".into(),
            prompt: codec.tokens(&request.prompt).unwrap(),
            chosen: response(&completion.tokens),
            rejected: response(&[5, 6]),
        };
        let scored = score(&model, &[&pair], KeptStates::Nothing, PAD).unwrap().remove(0).chosen.score;
        let off = (scored.log_prob - completion.log_prob()).abs();
        assert!(off <= 1e-5 * scored.log_prob.abs().max(1.0), "{} is not {}", completion.log_prob(), scored.log_prob);
        assert_eq!((scored.n_tokens, pair.prompt.len()), (completion.tokens.len(), completion.n_prompt_tokens));
    }
}

#[test]
fn a_trained_answer_ends_with_its_stop_token_and_its_text_has_no_special_tokens() {
    let (model, codec) = (load(&tiny()), codec());
    let generator = Generator::new(&model, &codec);
    let question = "May I borrow my neighbour's umbrella without asking?";
    let completion = generator.complete([Request::greedy(user(question), 96)]).unwrap().remove(0);
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    assert!(codec.stop_tokens().contains(completion.tokens.last().unwrap()));
    assert!(!completion.text.is_empty() && !completion.text.contains("<|"), "{}", completion.text);
    let message = Message { role: Role::User, content: question.into() };
    assert_eq!(generator.answer(&[message], 96).unwrap(), Some((completion.text.clone(), completion.finish_reason)));
    // The same prompt as text, and as tokens.
    let text = codec.encoder().chat_text(&[Message { role: Role::User, content: question.into() }]).unwrap();
    let tokens = codec.tokens(&user(question)).unwrap();
    for prompt in [Prompt::Text(text), Prompt::Tokens(tokens)] {
        assert_eq!(generator.complete([Request::greedy(prompt, 96)]).unwrap().remove(0), completion);
    }
}

#[test]
fn events_tell_the_text_as_it_grows_and_may_end_the_work() {
    let (model, codec) = (load(&tiny()), codec());
    let generator = Generator { batch_size: 3, ..Generator::new(&model, &codec) };
    let mut pieces = vec![String::new(); requests().len()];
    let mut finished = Vec::new();
    let on_event = |event: Event<'_>| {
        match event {
            Event::Text { index, piece } => pieces[index].push_str(piece),
            Event::Finished { index, completion } => finished.push((index, completion)),
        }
        Ok(ControlFlow::Continue(()))
    };
    generator.run(requests(), on_event).unwrap();
    assert_eq!(finished.len(), pieces.len());
    assert!(finished.iter().all(|(index, completion)| completion.text == pieces[*index]));
    // Requests are taken as there is room for them, not all at once.
    let mut n_taken = 0;
    let mut n_finished = 0;
    let taken = requests().into_iter().inspect(|_| n_taken += 1);
    generator
        .run(taken, |event| {
            n_finished += usize::from(matches!(event, Event::Finished { .. }));
            Ok(if n_finished == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .unwrap();
    assert_eq!(n_finished, 2);
    assert!(n_taken < requests().len(), "{n_taken}");
}

#[test]
fn a_text_ends_where_the_model_has_no_more_positions() {
    let (model, codec) = (load(&tiny()), codec());
    let generator = Generator::new(&model, &codec);
    let most = model.description().max_positions;
    let prompt = |n: usize| Prompt::Tokens(random_tokens(&mut Random::new(3), n, 1000));
    let drawn = Sampling { temperature: 3.0, ..Sampling::default() };
    let request = |n: usize| Request { sampling: drawn.clone(), ..Request::greedy(prompt(n), 40) };
    let completions = generator.complete([request(most - 3), request(most), request(most + 5), request(4)]).unwrap();
    let of: Vec<_> = completions.iter().map(|completion| (completion.tokens.len(), completion.finish_reason)).collect();
    assert_eq!(of[..3], [(3, FinishReason::Length), (0, FinishReason::Length), (0, FinishReason::Length)]);
    assert!(of[3].0 > 3, "{of:?}");
}

#[test]
fn a_request_that_cannot_be_met_is_named() {
    let (model, codec) = (load(&tiny()), codec());
    let generator = Generator::new(&model, &codec);
    let good = Request::greedy(user("Rain"), 3);
    let assistant_first = Message { role: Role::User, content: String::new() };
    for (bad, expected) in [
        (Request { max_new_tokens: 0, ..good.clone() }, "max_new_tokens"),
        (Request { stop: vec![String::new()], ..good.clone() }, "stop string"),
        (Request { sampling: Sampling { top_p: 2.0, ..Sampling::default() }, ..good.clone() }, "top_p"),
        (Request { prompt: Prompt::Tokens(Vec::new()), ..good.clone() }, "no tokens"),
        (Request { prompt: Prompt::Tokens(vec![99_999]), ..good.clone() }, "99999"),
    ] {
        let error = format!("{:#}", generator.complete([good.clone(), bad]).unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("request 1") || expected == "99999", "{error}");
    }
    assert!(generator.complete([Request { prompt: Prompt::Chat(vec![assistant_first]), ..good }]).is_ok());
}

#[test]
fn damaged_weights_are_an_error_and_not_a_text() {
    let (model, codec) = (load(&tiny()), codec());
    let norm = model.parameters().iter().find(|parameter| parameter.name == "model.norm.weight").unwrap();
    ops::update(&norm.value, |values| values[0] = f32::NAN).unwrap();
    let error = Generator::new(&model, &codec).complete([Request::greedy(user("Rain"), 3)]).unwrap_err();
    assert!(error.to_string().contains("not numbers"), "{error:#}");
}

#[test]
fn choices_have_the_log_probabilities_of_scoring() {
    let (model, codec) = (load(&tiny()), codec());
    let generator = Generator::new(&model, &codec);
    let continuations = ["A", "Please ask first.", "请先问。", " B"].map(str::to_owned).to_vec();
    let prompts = ["Rain?", "May I take it?", "我可以借雨伞吗？"];
    let choices: Vec<Choices> = prompts.iter().map(|text| Choices { prompt: user(text), continuations: continuations.clone() }).collect();
    let together = generator.log_probs(&choices).unwrap();
    for (choices, log_probs) in choices.iter().zip(&together) {
        assert_eq!(generator.log_probs(std::slice::from_ref(choices)).unwrap()[0], *log_probs, "alone and together");
        let prompt = codec.tokens(&choices.prompt).unwrap();
        for (text, log_prob) in continuations.iter().zip(log_probs) {
            let tokens = codec.encoder().continuation_tokens(text).unwrap();
            let states = hidden(&model, &[prompt.clone(), tokens.clone()].concat());
            let expected: f64 = tokens
                .iter()
                .enumerate()
                .map(|(i, &token)| {
                    let logits = model.logits(&states[prompt.len() + i - 1]).unwrap();
                    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
                    f64::from(logits[token as usize]) - total.ln()
                })
                .sum();
            assert!((log_prob - expected).abs() < 1e-4, "{text}: {log_prob} is not {expected}");
        }
    }
    let empty = Choices { prompt: user("Rain?"), continuations: vec![String::new()] };
    let error = format!("{:#}", generator.log_probs(&[choices[0].clone(), empty]).unwrap_err());
    assert!(error.contains("choice 1") && error.contains("no tokens"), "{error}");
    assert_eq!(generator.log_probs(&[]).unwrap(), Vec::<Vec<f64>>::new());
}

#[test]
fn many_random_shapes_agree_with_the_whole_text() {
    // Heads of odd sizes, and a hidden size that is no multiple of a vector.
    for (i, config) in [support::llama(56, 300), support::gemma2(40, 310)].iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        support::write_model(folder.path(), config, i as u64);
        assert_bit_by_bit_equals_whole(&config["model_type"].to_string(), &load(folder.path()), 5e-5);
    }
}
