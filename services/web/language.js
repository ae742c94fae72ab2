// The interface in English and Spanish. The page's own text is the English; only what scripts say is written here twice.

const ENGLISH = {
  similarity: "similarity {share}",
  own_picture: "your own picture",
  after_picture: "after {title}",
  after_pictures: "after {count} pictures",
  in_style_of: "in the style of {style}",
  by: "{title}, {artist}",
  finding: "Looking through the gallery …",
  near_styles: "Looking for styles …",
  checking: "Looking at your picture …",
  painting: "Painting …",
  optimizing: "The optimiser paints; it may take a minute or two.",
  queued: { one: "Next in the queue.", other: "Place {count} in the queue." },
  step: "The optimiser paints: step {step} of {steps}.",
  curve: "Loss {first} at first, {last} after step {step}",
  alt_evolving: "{title}, while it is painted in the style of {style}",
  job_gone: "This painting was cancelled, or nobody fetched it in time.",
  job_gone_hint: "Paint it again.",
  sheet_paint: "Paint the sheet",
  sheet_rest: "Paint the rest",
  sheet_anew: "Paint the sheet anew",
  sheet_begun: "Painting {count} small pictures.",
  sheet_done: "{done} of {count} painted",
  sheet_waits: "The service is busy; going on in {seconds} s.",
  sheet_failed: "The sheet stopped: {why}",
  sheet_none: "This one cannot be painted.",
  own_empty: "That file is empty.",
  own_empty_hint: "Choose a picture.",
  own_kind: "That file is no picture that can be read.",
  own_kind_hint: "Send a picture as JPEG, PNG, WebP, GIF, BMP or TIFF.",
  own_small: "That picture is only {width} × {height} pixels; painting needs {least} on the shorter side.",
  own_small_hint: "Choose a larger picture.",
  own_thin: "That picture is too elongated to be painted: {width} × {height} pixels.",
  own_thin_hint: "Choose one that is less long, or cut it.",
  own_large: "That file is too large: this service takes {most} MB.",
  own_large_hint: "Save it as JPEG, or choose a smaller one.",
  waiting: "A preview is there; the optimiser begins in a moment.",
  seconds: "{count} s",
  sketch: "A preview, painted in one pass; the optimiser’s painting takes its place.",
  stopped: "Stopped.",
  found: { one: "One picture found.", other: "{count} pictures found." },
  painted: "The painting is ready: {title}, in the style of {style}.",
  made_content: "The picture lies at distance {distance} from your words.",
  made_style: "The style lies at distance {distance} from the picture’s.",
  made_fast: "Painted by the fast network {model} on {provider}.",
  made_fast_near: "Painted by the fast network {model} on {provider}, which learned a style at distance {distance}.",
  made_instant: "Painted in one pass, by the style’s statistics, on {provider}.",
  made_optimize: { one: "Painted by the optimiser in one step on {provider}.", other: "Painted by the optimiser in {count} steps on {provider}." },
  made_times: "Finding took {retrieve}, painting {paint} ({stages}).",
  made_times_own: "Painting took {stages}.",
  stage_retrieve: "finding",
  stage_paint: "painting",
  stage_decode: "reading",
  stage_network: "network",
  stage_finish: "finishing",
  stage_encode: "writing",
  stage_optimize: "optimiser",
  alt_before: "{title}, before painting",
  alt_after: "{title}, painted in the style of {style}",
  retry: "Try again",
  drop_content: "Drop it here to paint it",
  drop_style: "Drop it here to paint in its style",
  drop_files: "Only a picture file can be dropped here.",
  card_after: "Learned from",
  card_content: "Content to practise on",
  card_pictures: { one: "one picture", other: "{count} pictures" },
  card_loss: "Total loss",
  card_reference: "The optimiser is as good after",
  card_steps: { one: "one step from noise", other: "{count} steps from noise" },
  card_beyond: "more than {count} steps from noise",
  card_unmeasured: "not measured",
  card_training: "Training",
  card_trained: { one: "one step, {minutes} min", other: "{count} steps, {minutes} min" },
  card_parity: "Largest difference between PyTorch and ONNX Runtime",
  card_size: "Size",
  card_weight: "{parameters} parameters, {megabytes} MB",
  card_created: "Made",
  card_licence: "Licence",
  card_use: "Paint in this style",
  card_example: "{title}, painted by the network {name}",
  about: { one: "{gallery}: one picture.", other: "{gallery}: {count} pictures." },
  gallery_met: "The Metropolitan Museum of Art, open access",
  hint_no_answer: "Check the connection, then try again.",
};

const SPANISH = {
  made_so_far: "Hasta dónde va la pintura",
  own_photo: "o haz una foto con la cámara",
  own_hint: "También puedes soltar aquí una imagen, o pegarla.",
  onward: "o mira todas las imágenes en todos los estilos",
  format: "Archivo",
  recipe: "El archivo dice en sus metadatos cómo se pintó.",
  networks: "Cómo se entrenaron",
  networks_page: "Las redes y lo que aprendieron",
  networks_note: "Cada red aprendió un estilo y lo pinta de una pasada. Aquí está de qué cuadro lo aprendió, qué hace con una imagen de la galería y lo buena que es comparada con el optimizador.",
  networks_back: "Volver a pintar",
  sheet: "Cada imagen en cada estilo",
  sheet_note: "Las imágenes que responden a tus palabras, cada una en los estilos más cercanos: pequeñas y de una pasada. Elige una para pintarla en grande.",
  sheet_save: "Guardar la lámina",
  motto: "Palabras que se hacen cuadro.",
  words: "Palabras",
  title: "Título",
  description: "Descripción",
  paint: "Pintar",
  own_content: "o empieza con una imagen tuya",
  examples: "O parte de una de estas",
  compare: "Cuánto se ve de la imagen antes de pintarla",
  stop: "Detener",
  before: "imagen",
  after: "pintura",
  download: "Descargar",
  own_note: "La dirección de esta página no contiene tu imagen, así que un enlace no puede repetir esta pintura.",
  options: "Cómo se pinta",
  size: "Lado mayor",
  strength: "Intensidad",
  preserve_color: "Conservar los colores de la imagen",
  engine: "Quién pinta",
  engine_auto: "lo que mejor vaya con el estilo",
  engine_fast: "una red rápida, al instante",
  engine_instant: "una pasada, en cualquier estilo",
  engine_optimize: "el optimizador, en un minuto más o menos",
  steps: "Pasos del optimizador",
  again: "Pintar de nuevo",
  contents: "La imagen",
  contents_note: "Lo que mejor responde a tus palabras. Elige otra para pintarla en su lugar.",
  styles: "El estilo",
  styles_note: "Cuadros de manera parecida a la de esa imagen.",
  fast: "Estilos que una red ha aprendido",
  fast_note: "Estos se pintan al instante.",
  own_style: "o toma el estilo de una imagen tuya",
  docs: "Para programas: la interfaz HTTP",

  similarity: "parecido {share}",
  own_picture: "tu imagen",
  after_picture: "según {title}",
  after_pictures: "según {count} cuadros",
  in_style_of: "al estilo de {style}",
  by: "{title}, {artist}",
  finding: "Buscando en la galería …",
  near_styles: "Buscando estilos …",
  checking: "Mirando tu imagen …",
  painting: "Pintando …",
  optimizing: "El optimizador pinta; puede tardar un minuto o dos.",
  queued: { one: "La siguiente en la cola.", other: "Puesto {count} en la cola." },
  step: "El optimizador pinta: paso {step} de {steps}.",
  curve: "Pérdida {first} al principio, {last} tras el paso {step}",
  alt_evolving: "{title}, mientras se pinta al estilo de {style}",
  job_gone: "Esta pintura se canceló, o nadie la recogió a tiempo.",
  job_gone_hint: "Píntala de nuevo.",
  sheet_paint: "Pintar la lámina",
  sheet_rest: "Pintar lo que falta",
  sheet_anew: "Pintar la lámina de nuevo",
  sheet_begun: "Pintando {count} cuadros pequeños.",
  sheet_done: "{done} de {count} pintados",
  sheet_waits: "El servicio está ocupado; sigue en {seconds} s.",
  sheet_failed: "La lámina se detuvo: {why}",
  sheet_none: "Esta no se puede pintar.",
  own_empty: "Ese archivo está vacío.",
  own_empty_hint: "Elige una imagen.",
  own_kind: "Ese archivo no es una imagen que se pueda leer.",
  own_kind_hint: "Envía una imagen en JPEG, PNG, WebP, GIF, BMP o TIFF.",
  own_small: "Esa imagen solo tiene {width} × {height} píxeles; para pintarla hacen falta {least} en el lado menor.",
  own_small_hint: "Elige una imagen mayor.",
  own_thin: "Esa imagen es demasiado alargada para pintarla: {width} × {height} píxeles.",
  own_thin_hint: "Elige una menos larga, o recórtala.",
  own_large: "Ese archivo es demasiado grande: este servicio admite {most} MB.",
  own_large_hint: "Guárdala como JPEG, o elige una menor.",
  waiting: "Ya hay una vista previa; el optimizador empieza enseguida.",
  seconds: "{count} s",
  sketch: "Una vista previa, pintada de una vez; la pintura del optimizador la sustituirá.",
  stopped: "Detenido.",
  found: { one: "Una imagen encontrada.", other: "{count} imágenes encontradas." },
  painted: "La pintura está lista: {title}, al estilo de {style}.",
  made_content: "La imagen está a distancia {distance} de tus palabras.",
  made_style: "El estilo está a distancia {distance} del de la imagen.",
  made_fast: "Pintado por la red rápida {model} en {provider}.",
  made_fast_near: "Pintado por la red rápida {model} en {provider}, que aprendió un estilo a distancia {distance}.",
  made_instant: "Pintado de una vez, según la estadística del estilo, en {provider}.",
  made_optimize: { one: "Pintado por el optimizador en un paso en {provider}.", other: "Pintado por el optimizador en {count} pasos en {provider}." },
  made_times: "Buscar llevó {retrieve}; pintar, {paint} ({stages}).",
  made_times_own: "Pintar llevó {stages}.",
  stage_retrieve: "buscar",
  stage_paint: "pintar",
  stage_decode: "leer",
  stage_network: "red",
  stage_finish: "acabado",
  stage_encode: "escribir",
  stage_optimize: "optimizador",
  alt_before: "{title}, antes de pintarla",
  alt_after: "{title}, pintada al estilo de {style}",
  retry: "Intentar de nuevo",
  drop_content: "Suéltala aquí para pintarla",
  drop_style: "Suéltala aquí para pintar con su estilo",
  drop_files: "Aquí solo se puede soltar un archivo de imagen.",
  card_after: "Aprendido de",
  card_content: "Imágenes para practicar",
  card_pictures: { one: "una imagen", other: "{count} imágenes" },
  card_loss: "Pérdida total",
  card_reference: "El optimizador la iguala tras",
  card_steps: { one: "un paso desde ruido", other: "{count} pasos desde ruido" },
  card_beyond: "más de {count} pasos desde ruido",
  card_unmeasured: "sin medir",
  card_training: "Entrenamiento",
  card_trained: { one: "un paso, {minutes} min", other: "{count} pasos, {minutes} min" },
  card_parity: "Mayor diferencia entre PyTorch y ONNX Runtime",
  card_size: "Tamaño",
  card_weight: "{parameters} parámetros, {megabytes} MB",
  card_created: "Hecha",
  card_licence: "Licencia",
  card_use: "Pintar en este estilo",
  card_example: "{title}, pintada por la red {name}",
  about: { one: "{gallery}: una imagen.", other: "{gallery}: {count} imágenes." },
  gallery_met: "The Metropolitan Museum of Art, acceso abierto",
  hint_no_answer: "Comprueba la conexión e inténtalo de nuevo.",

  // The gallery's own texts decide which words find something; those of the default one are English.
  catalogue_language: "Esta galería está catalogada en inglés; tus palabras en español se traducen con un léxico.",

  // The server explains a refusal in English; these say the same in a line.
  refused_no_match: "Ninguna imagen de la galería responde a esas palabras.",
  refused_not_found: "Eso ya no está, o nunca estuvo, en la galería.",
  refused_not_a_picture: "Ese archivo no es una imagen que se pueda leer.",
  refused_empty_picture: "Ese archivo está vacío.",
  refused_truncated_picture: "Esa imagen está incompleta o dañada.",
  refused_picture_too_large: "Esa imagen es demasiado grande.",
  refused_picture_too_small: "Esa imagen es demasiado pequeña.",
  refused_body_too_large: "Ese archivo es demasiado grande.",
  refused_busy: "Hay demasiadas pinturas en curso.",
  refused_unreachable: "Una parte del servicio no responde.",
  refused_no_answer: "El servidor no responde.",
  refused_invalid_input: "Algo de lo pedido no es posible.",
};

const DICTIONARIES = { en: ENGLISH, es: SPANISH };
const MEMORY = "lienzo-language";

let current = remembered() ?? (navigator.languages ?? [navigator.language]).map((tag) => tag.slice(0, 2)).find((tag) => tag in DICTIONARIES) ?? "en";

export const language = () => current;

/** Say `key` in the current language, with `{name}` filled in; `count` also chooses the plural. */
export function t(key, values = {}) {
  let text = DICTIONARIES[current][key] ?? ENGLISH[key] ?? "";
  if (typeof text === "object") text = text[new Intl.PluralRules(current).select(values.count)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? number(values[name]) : values[name] ?? ""));
}

export const number = (value, options) => new Intl.NumberFormat(current, options).format(value);

/** A duration, in milliseconds below a second. */
export function duration(milliseconds) {
  return milliseconds < 1000
    ? `${number(Math.round(milliseconds))} ms`
    : `${number(milliseconds / 1000, { maximumFractionDigits: 1 })} s`;
}

/** Translate the page's own text in place: `data-t` the text, `data-t-aria-label` the name. */
export function translate(tag = current) {
  current = tag;
  document.documentElement.lang = tag;
  for (const element of document.querySelectorAll("[data-t]")) {
    ENGLISH[element.dataset.t] ??= element.textContent;
    element.textContent = t(element.dataset.t);
  }
  for (const element of document.querySelectorAll("[data-t-aria-label]")) {
    ENGLISH[element.dataset.tAriaLabel] ??= element.getAttribute("aria-label");
    element.setAttribute("aria-label", t(element.dataset.tAriaLabel));
  }
}

/** Change to the other language, and keep to it. */
export function toggle() {
  translate(current === "en" ? "es" : "en");
  try {
    localStorage.setItem(MEMORY, current);
  } catch {
    // A browser that stores nothing asks again next time.
  }
}

function remembered() {
  try {
    const tag = localStorage.getItem(MEMORY);
    return tag in DICTIONARIES ? tag : null;
  } catch {
    return null;
  }
}
