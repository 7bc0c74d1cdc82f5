//! The switch with which a template lets a model think before it answers, or not: a variable that it reads.

use super::Template;
use crate::data::pair::{Message, Role};
use anyhow::{Context, Result, bail};
use minijinja::Value;
use serde::{Deserialize, Serialize};

/// Whether a model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    On,
    Off,
}

impl Thinking {
    /// As options and result files name it.
    pub fn name(self) -> &'static str {
        match self {
            Thinking::On => "on",
            Thinking::Off => "off",
        }
    }

    /// Of `on` and `off`.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "on" => Ok(Thinking::On),
            "off" => Ok(Thinking::Off),
            _ => bail!("thinking is `on` or `off`, and not `{name}`"),
        }
    }
}

/// Variables that are true or false, by the models' families: Qwen3 and most; DeepSeek, Granite and Kimi; Cohere; others.
const SWITCHES: [&str; 7] = ["enable_thinking", "thinking", "enable_reasoning", "reasoning", "enable_think", "use_thinking", "is_thinking"];
/// Seed-OSS counts tokens: none, or as many as it takes.
const BUDGET: &str = "thinking_budget";
const NO_BUDGET: i64 = -1;

impl Template {
    /// Turns thinking on or off in every prompt from now on.
    ///
    /// # Errors
    /// The template reads no variable that does so.
    pub fn set_thinking(&mut self, thinking: Thinking) -> Result<()> {
        let Some(set) = self.switch(thinking)? else {
            let levels = match self.reads("reasoning_effort")? {
                true => "; it reads `reasoning_effort`, which has levels, and is neither on nor off",
                false => "",
            };
            bail!(
                "thinking cannot be turned {}: the chat template `{}` reads none of {}, {BUDGET}{levels}\nhint: leave `--thinking` out, and the model \
                 thinks or not as it was taught",
                thinking.name(),
                self.name,
                SWITCHES.join(", ")
            );
        };
        self.thinking = Some(set);
        Ok(())
    }

    /// Whether the template lets the model think; `None` where it has no switch, or one that changes nothing about a question.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn thinking(&self) -> Result<Option<bool>> {
        let (Some(on), Some(off)) = (self.switch(Thinking::On)?, self.switch(Thinking::Off)?) else { return Ok(None) };
        let question = [Message { role: Role::User, content: "?".into() }];
        let own = self.render(&question, true)?;
        let [on, off] = [on, off].map(|set| self.render_with(Some(&set), &question, true));
        let (on, off) = (on?, off?);
        Ok((on != off && (own == on || own == off)).then(|| own == on))
    }

    /// The variable to set, and its value.
    fn switch(&self, thinking: Thinking) -> Result<Option<(&'static str, Value)>> {
        let is_on = thinking == Thinking::On;
        for name in SWITCHES {
            if self.reads(name)? {
                return Ok(Some((name, Value::from(is_on))));
            }
        }
        Ok(self.reads(BUDGET)?.then(|| (BUDGET, Value::from(if is_on { NO_BUDGET } else { 0 }))))
    }

    fn reads(&self, variable: &str) -> Result<bool> {
        let template = self.environment.get_template("template").with_context(|| format!("in the chat template `{}`", self.name))?;
        Ok(template.undeclared_variables(false).contains(variable))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tokenizer_config::TokenizerConfig;
    use super::*;

    const TURNS: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";

    fn template(end: &str) -> Template {
        Template::new("t", &format!("{TURNS}{{% if add_generation_prompt %}}<|assistant|>{end}{{% endif %}}"), &TokenizerConfig::default())
            .unwrap()
    }

    fn prompts(end: &str) -> [String; 3] {
        let question = [Message { role: Role::User, content: "rain".into() }];
        let mut template = template(end);
        let own = template.render(&question, true).unwrap();
        let [on, off] = [Thinking::On, Thinking::Off].map(|thinking| {
            template.set_thinking(thinking).unwrap();
            template.render(&question, true).unwrap()
        });
        [own, on, off].map(|text| text.strip_prefix("<|user|>rain<|assistant|>").unwrap().to_owned())
    }

    const QWEN: &str = "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}";
    const DEEPSEEK: &str =
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ '<think>' if thinking else '</think>' }}";
    const SMOL: &str =
        "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{{ '' if enable_thinking else 'no' }}";
    const SEED: &str = "{% if thinking_budget is not defined %}{% set thinking_budget = -1 %}{% endif %}{{ thinking_budget }}";

    #[test]
    fn the_switch_is_the_variable_that_the_template_reads() {
        assert_eq!(prompts(QWEN), ["", "", "<think>\n\n</think>\n\n"]);
        assert_eq!(prompts(DEEPSEEK), ["</think>", "<think>", "</think>"]);
        assert_eq!(prompts(SMOL), ["", "", "no"]);
        assert_eq!(prompts(SEED), ["-1", "-1", "0"]);
    }

    #[test]
    fn what_a_template_does_by_itself_shows_in_what_it_renders() {
        let thinking = |end: &str| template(end).thinking().unwrap();
        assert_eq!(
            [QWEN, DEEPSEEK, SMOL, SEED, "", "{{ m.thinking }}"].map(thinking),
            [Some(true), Some(false), Some(true), Some(true), None, None]
        );
        let mut off = template(QWEN);
        off.set_thinking(Thinking::Off).unwrap();
        assert_eq!(off.thinking().unwrap(), Some(false));
    }

    #[test]
    fn a_template_without_a_switch_says_so() {
        let error = |end: &str| template(end).set_thinking(Thinking::Off).unwrap_err().to_string();
        assert!(error("").contains("thinking cannot be turned off: the chat template `t` reads none of enable_thinking, thinking"));
        assert!(
            error("{% set thinking = 1 %}{{ thinking }}{{ messages[0].enable_thinking }}").contains("reads none"),
            "its own variables are no switch"
        );
        assert!(error("{{ reasoning_effort }}").contains("`reasoning_effort`, which has levels"));
        assert!(Thinking::by_name("maybe").unwrap_err().to_string().contains("`maybe`"));
    }
}
