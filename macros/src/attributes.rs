//! Reads `#[lopt(..)]` on the struct and on its fields.

use std::fmt::Display;

use proc_macro2::Span;
use quote::ToTokens;
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned;
use syn::{Attribute, Error, Lit, Meta, Result, Token};

use crate::wiring::Wiring;

/// Everything that is wrong, to be reported at once.
#[derive(Default)]
pub struct Problems {
    errors: Option<Error>,
    field: Option<String>,
}

impl Problems {
    /// From now on, problems are with this field.
    pub fn with_field(&mut self, field: Option<&str>) {
        self.field = field.map(str::to_owned);
    }

    /// Notes what is wrong with some tokens.
    pub fn at(&mut self, tokens: impl ToTokens, problem: impl Display) {
        let problem = self.named(problem);
        self.push(Error::new_spanned(tokens, problem));
    }

    /// Notes what is wrong at a place.
    pub fn at_span(&mut self, span: Span, problem: impl Display) {
        let problem = self.named(problem);
        self.push(Error::new(span, problem));
    }

    pub fn into_result(self) -> Result<()> {
        self.errors.map_or(Ok(()), Err)
    }

    fn named(&self, problem: impl Display) -> String {
        match &self.field {
            Some(field) => format!("field `{field}`: {problem}"),
            None => problem.to_string(),
        }
    }

    fn push(&mut self, error: Error) {
        match &mut self.errors {
            Some(first) => first.combine(error),
            None => self.errors = Some(error),
        }
    }
}

/// Whether an attribute is ours: `#[lopt(..)]`.
pub fn is_lopt(attribute: &Attribute) -> bool {
    attribute.path().is_ident("lopt")
}

/// Who writes the forward pass.
pub enum Forward {
    /// The macro: the fields are layers, applied in order.
    Sequence,
    /// The user; how the fields are wired is not known.
    Unknown,
    /// The user, who states the wiring.
    Wired(Wiring),
}

impl Forward {
    /// Reads the attributes of the struct.
    pub fn parse(attributes: &[Attribute], problems: &mut Problems) -> Self {
        let mut forward = Self::Sequence;
        for attribute in attributes {
            read(attribute, "write `#[lopt(forward)]`", problems, |word, meta| {
                if word == "forward" && matches!(forward, Self::Sequence) {
                    forward = Self::parse_value(&meta)?;
                    return Ok(());
                }
                Err(Error::new(
                    meta.path.span(),
                    match word {
                        "forward" => "`forward` is there twice: remove one".to_owned(),
                        "residual" | "frozen" | "skip" | "init" => {
                            format!("`{word}` is for one field: put `#[lopt({word})]` on it")
                        }
                        _ => format!("unknown attribute `{word}`: a struct may have `forward`"),
                    },
                ))
            });
        }
        forward
    }

    fn parse_value(meta: &ParseNestedMeta) -> Result<Self> {
        if meta.input.peek(Token![=]) {
            let problem = "the wiring goes in parentheses: write \
                           `#[lopt(forward(hidden, ReLU, output))]`";
            return Err(Error::new(meta.path.span(), problem));
        }
        if !meta.input.peek(syn::token::Paren) {
            return Ok(Self::Unknown);
        }
        let content;
        syn::parenthesized!(content in meta.input);
        if content.is_empty() {
            let problem = "the wiring is empty: write `#[lopt(forward)]` to state none";
            return Err(Error::new(meta.path.span(), problem));
        }
        Ok(Self::Wired(content.parse()?))
    }
}

/// What `#[lopt(..)]` says about a field, and where.
#[derive(Default)]
pub struct FieldOptions {
    /// The field's output is added to its input.
    pub residual: Option<Span>,
    /// Nobody changes the field's tensors.
    pub frozen: Option<Span>,
    /// lopt does not see the field's tensors.
    pub skip: Option<Span>,
    /// What a bare tensor is filled with at first.
    pub init: Option<(Span, f64)>,
}

impl FieldOptions {
    /// Reads the attributes of a field.
    pub fn parse(attributes: &[Attribute], problems: &mut Problems) -> Self {
        const EXPECTED: &str = "write `#[lopt(residual)]`, `#[lopt(frozen)]` or `#[lopt(skip)]`";
        let mut options = Self::default();
        for attribute in attributes {
            read(attribute, EXPECTED, problems, |word, meta| options.add(word, &meta));
        }
        options
    }

    fn add(&mut self, word: &str, meta: &ParseNestedMeta) -> Result<()> {
        let span = meta.path.span();
        let option = match word {
            "residual" => &mut self.residual,
            "frozen" => &mut self.frozen,
            "skip" => &mut self.skip,
            "init" if self.init.is_none() => {
                self.init = Some((span, parse_number(meta)?));
                return Ok(());
            }
            "init" => return Err(Error::new(span, "`init` is there twice: remove one")),
            "forward" => {
                let problem = "`forward` is for the whole struct: put it there";
                return Err(Error::new(span, problem));
            }
            _ => {
                let problem = format!(
                    "unknown attribute `{word}`, expected `residual`, `frozen`, `skip` or `init`"
                );
                return Err(Error::new(span, problem));
            }
        };
        if option.replace(span).is_some() {
            return Err(Error::new(span, format!("`{word}` is there twice: remove one")));
        }
        if meta.input.is_empty() || meta.input.peek(Token![,]) {
            return Ok(());
        }
        Err(Error::new(span, format!("`{word}` takes no value: write `#[lopt({word})]`")))
    }
}

/// Hands each word of `#[lopt(word, ..)]` to `read_word`.
fn read(
    attribute: &Attribute,
    expected: &str,
    problems: &mut Problems,
    mut read_word: impl FnMut(&str, ParseNestedMeta) -> Result<()>,
) {
    if !matches!(&attribute.meta, Meta::List(list) if !list.tokens.is_empty()) {
        problems.at(attribute, format!("this attribute says nothing: {expected}"));
        return;
    }
    let result = attribute.parse_nested_meta(|meta| {
        let word = meta.path.to_token_stream().to_string();
        read_word(&word, meta)
    });
    if let Err(error) = result {
        problems.at_span(error.span(), error);
    }
}

/// The value of `init = 1.0`.
fn parse_number(meta: &ParseNestedMeta) -> Result<f64> {
    let error = || {
        let problem = "`init` is the number that a tensor is filled with: write \
                       `#[lopt(init = 1.0)]`";
        Error::new(meta.path.span(), problem)
    };
    if !meta.input.peek(Token![=]) {
        return Err(error());
    }
    meta.input.parse::<Token![=]>()?;
    let negative = meta.input.parse::<Option<Token![-]>>()?.is_some();
    let value: f64 = match meta.input.parse::<Lit>() {
        Ok(Lit::Float(value)) => value.base10_parse().map_err(|_| error())?,
        Ok(Lit::Int(value)) => value.base10_parse().map_err(|_| error())?,
        _ => return Err(error()),
    };
    Ok(if negative { -value } else { value })
}
