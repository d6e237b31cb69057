# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A robot's camera and microphone, kept in the context of a language model that answers questions.

The rooms of the package, from the ground up. A room imports only from the rooms above it in this
list, and only the last six import rclpy or a message; a test holds both. Modules beside the rooms
(errors, config, documents, process, units) import from no room.

families        what tells one version of MiniCPM-o from another, as data
ggml            the compute library bound by ctypes: tensors, graphs, weights, GGUF headers
media           signals in: audio to samples and spectra, images to RGB and tiles, video files
encoders        Whisper and SigLIP: a second of audio, an image, to embeddings
llm             the language model: file, vocabulary, prompt, context, grammar, sampling
modelset        a model directory: manifest, hashes, published layouts, files found elsewhere
quantize        model files in fewer bits
convert         Hugging Face checkpoints to model files
synthetic       model files of any size with random weights
memory          memory forecasts, what to lower, presets, the guard of a running robot
pace            how much is seen of a second where the machine is too slow
speech          the robot's own voice: text to sentences, sentences to sound by another process
streams         stamped input to seconds: time, gaps, encoding as it arrives, pairing into units
voice           spoken questions: speech in audio, turns, what a question about audio waits for
alerts          standing questions: rules, their states and turns, calibration
notes           what has left the window: a file of sentences, searched by words, time, place
sessions        seconds of the window in a file: the black box, saved sessions
live            the session: window, questions on forks, the engine and its share of the device
evaluation      questions about recordings: bags, replay, scores, reports, benchmarks
web             the page in the browser and its server
ros.framework   what all nodes are made of
client          asking from other nodes and scripts
ros             the nodes, launch, playback, replay through the live graph
ros.web         the node of that page
verbs           what is asked of a running robot, for minicpmo and ros2 minicpmo
cli             the command minicpmo, a module for each verb
"""

from pkgutil import extend_path

# A checkout on sys.path shadows the installed package: this lets its sources and the
# generated msg, srv and action modules of the installation be one package.
__path__ = extend_path(__path__, __name__)
