// Answers of ours, always the same; what says "fail" gets none.
class Own {
  constructor(options) {
    this.rude = (options.config || {}).rude;
  }
  id() {
    return 'own';
  }
  async callApi(prompt) {
    if (prompt.includes('fail')) return { error: 'the server is down' };
    const output = this.rude && prompt.includes('so') ? 'You idiot.' : 'Thank you.';
    return { output, finishReason: prompt.includes('shop') ? 'length' : 'stop' };
  }
}
module.exports = Own;
